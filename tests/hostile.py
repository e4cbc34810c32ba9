"""Files that would run a command if anything in them were executed, one for each way of calling in a pickle."""

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

_NAMES = {
    "os.system": ("os", "system", "touch {canary}"),
    "posix.system": ("posix", "system", "touch {canary}"),
    "subprocess.getstatusoutput": ("subprocess", "getstatusoutput", "touch {canary}"),
    "subprocess.getoutput": ("subprocess", "getoutput", "touch {canary}"),
    "builtins.eval": ("builtins", "eval", "open({canary!r}, 'w')"),
    "builtins.exec": ("builtins", "exec", "open({canary!r}, 'w')"),
    "runpy.run_path": ("runpy", "run_path", "{script}"),
    "torch.load": ("torch", "load", "{second}"),
    "numpy.load": ("numpy", "load", "{second}"),
    "torch.hub.load": ("torch.hub", "load_state_dict_from_url", "file://{second}"),
    "shutil.rmtree": ("shutil", "rmtree", "{victim}"),
    "codecs.open": ("codecs", "open", "{canary}"),
    "pathlib.Path.touch": ("pathlib", "Path.touch", "{canary}"),
}


def _text(value: str) -> bytes:
    content = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(content)) + content


def _global(module: str, name: str, _argument: bytes) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _reduced(module: str, name: str, argument: bytes) -> bytes:
    return _global(module, name, b"") + argument + pickle.TUPLE1 + pickle.REDUCE


def _stack_global(module: str, name: str, argument: bytes) -> bytes:
    return _text(module) + _text(name) + pickle.STACK_GLOBAL + argument + pickle.TUPLE1 + pickle.REDUCE


def _inst(module: str, name: str, argument: bytes) -> bytes:
    return pickle.MARK + argument + pickle.INST + f"{module}\n{name}\n".encode()


def _obj(module: str, name: str, argument: bytes) -> bytes:
    return pickle.MARK + _global(module, name, b"") + argument + pickle.OBJ


def _newobj(module: str, name: str, argument: bytes) -> bytes:
    return _global(module, name, b"") + argument + pickle.TUPLE1 + pickle.NEWOBJ


def _newobj_ex(module: str, name: str, argument: bytes) -> bytes:
    return _global(module, name, b"") + argument + pickle.TUPLE1 + pickle.EMPTY_DICT + pickle.NEWOBJ_EX


def _build(module: str, name: str, argument: bytes) -> bytes:
    """Give an object a `__setstate__` that calls the function."""
    state = pickle.EMPTY_DICT + _text("__setstate__") + _global(module, name, b"") + pickle.SETITEM
    empty = _global("collections", "OrderedDict", b"") + pickle.EMPTY_TUPLE + pickle.REDUCE
    return empty + state + pickle.BUILD + argument + pickle.BUILD


def _partial(module: str, name: str, argument: bytes) -> bytes:
    made = _global("functools", "partial", b"") + _global(module, name, b"") + argument + pickle.TUPLE2 + pickle.REDUCE
    return made + pickle.EMPTY_TUPLE + pickle.REDUCE


def _mapped(module: str, name: str, argument: bytes) -> bytes:
    some = pickle.EMPTY_LIST + argument + pickle.APPEND
    called = _global("builtins", "map", b"") + _global(module, name, b"") + some + pickle.TUPLE2 + pickle.REDUCE
    return _global("builtins", "list", b"") + called + pickle.TUPLE1 + pickle.REDUCE


def _getattr(module: str, name: str, argument: bytes) -> bytes:
    imported = _global("importlib", "import_module", b"") + _text(module) + pickle.TUPLE1 + pickle.REDUCE
    found = _global("builtins", "getattr", b"") + imported + _text(name) + pickle.TUPLE2 + pickle.REDUCE
    return found + argument + pickle.TUPLE1 + pickle.REDUCE


FAMILIES: dict[str, Callable[[str, str, bytes], bytes]] = {
    "GLOBAL REDUCE": _reduced,
    "STACK_GLOBAL": _stack_global,
    "INST": _inst,
    "OBJ": _obj,
    "NEWOBJ": _newobj,
    "NEWOBJ_EX": _newobj_ex,
    "BUILD": _build,
    "partial": _partial,
    "map": _mapped,
    "getattr of an import": _getattr,
}


def payload(family: str, name: str, folder: Path) -> bytes:
    """Return opcodes whose execution would create `folder/canary` or delete `folder/victim`."""
    places = {each: str(folder / each) for each in ("canary", "second", "script", "victim")}
    module, function, argument = _NAMES[name]
    return FAMILIES[family](module, function, _text(argument.format(**places)))


def bare(opcodes: bytes) -> bytes:
    """Return a pickle of the opcodes alone."""
    return pickle.PROTO + b"\x04" + opcodes + pickle.STOP


def among_weights(opcodes: bytes) -> bytes:
    """Return a pickle of a state dict with the opcodes as one of its values."""
    start = pickle.PROTO + b"\x02" + pickle.EMPTY_DICT + _text("state_dict") + pickle.EMPTY_DICT + _text("weight")
    return start + opcodes + pickle.SETITEM + pickle.SETITEM + pickle.STOP


def in_zip(pickled: bytes) -> bytes:
    """Return the pickle as a zip file like that of `torch.save`."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return file.getvalue()


def old_format(pickled: bytes) -> bytes:
    """Return the pickle as a file of torch before 1.6: a magic number, a protocol, the machine, the object."""
    magic, protocol, machine = 0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}
    return b"".join(pickle.dumps(each, protocol=2) for each in (magic, protocol, machine)) + pickled


def prepare(folder: Path) -> None:
    """Create what the payloads refer to: a second hostile file, a script, a folder to delete."""
    (folder / "second").write_bytes(bare(payload("GLOBAL REDUCE", "os.system", folder)))
    (folder / "script").write_text(f"open({str(folder / 'canary')!r}, 'w')")
    (folder / "victim").mkdir()


def executed(folder: Path) -> bool:
    """Return whether any payload was executed."""
    return (folder / "canary").exists() or not (folder / "victim").is_dir()


FILES: dict[str, Callable[[bytes], bytes]] = {
    "a pickle": bare,
    "a weight in a zip": lambda opcodes: in_zip(among_weights(opcodes)),
    "a weight in an old file": lambda opcodes: old_format(among_weights(opcodes)),
}

CALLS = [("GLOBAL REDUCE", name) for name in _NAMES] + [
    (family, "builtins.exec") for family in FAMILIES if family != "GLOBAL REDUCE"
]
