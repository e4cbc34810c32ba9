"""Read files written by `torch.save` as plain data: nothing is executed, and none needs more memory than its size.

`weights_only=True` alone would read a small file that unpacks to gigabytes.
"""

import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

# The errors that `torch.load` raises on damaged files: its unpickler of the old format checks little.
LOAD_ERRORS = (
    pickle.PickleError,
    zipfile.BadZipFile,
    struct.error,
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    MemoryError,
)

_PLAIN = (str, int, float, complex, bytes, torch.dtype, torch.device)
_ZIP = b"PK\3\4"
_DEPTH = 100
_MAX_EXPANDED = 1 << 26  # bytes of expanded tensors, whose elements share memory, once they are copied


def load_plain(path: Path, *, mmap: bool = False, allowed: Sequence[type] = ()) -> Any:
    """Return the content of a file that `torch.save` wrote: tensors, numbers, strings, lists and dicts.

    Args:
        path: of the file.
        mmap: map the tensors into memory instead of reading them.
        allowed: further classes that the file may hold; they must do nothing when they are restored.

    Raises:
        One of `LOAD_ERRORS`: the file is damaged, holds anything else, or would need more memory than its size.
    """
    if not path.is_file():  # reading a pipe or a device could block for ever
        raise FileNotFoundError(2, "no such file", str(path))
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) == _ZIP:  # what torch takes for a zip file
            _refuse_compressed(file, size)
    with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(list(allowed)):
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    expanded, stored = 0, dict[int, int]()
    for tensor in _tensors(content, _DEPTH, set(), tuple(allowed)):
        if tensor.layout != torch.strided:
            raise ValueError("it holds a sparse tensor")
        if tensor.is_meta:
            raise ValueError("it holds a tensor without values")
        needed, storage = tensor.numel() * tensor.itemsize, tensor.untyped_storage()
        stored[storage.data_ptr()] = storage.nbytes()
        expanded += needed if needed > storage.nbytes() else 0
        if expanded > _MAX_EXPANDED:
            raise ValueError(f"its tensor of shape {tuple(tensor.shape)} has fewer values in the file")
    if sum(stored.values()) > size:  # the old format may declare values that it lacks
        raise ValueError("it declares more values than it holds")
    return content


def load_error_reason(error: BaseException) -> str:
    """Return in a few words why a file could not be read."""
    if isinstance(error, pickle.PickleError):
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        return (
            f"it holds a {found[1]}, more than plain data" if found else "it is damaged or holds more than plain data"
        )
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    unpickler = not isinstance(error, OSError | RuntimeError | ValueError)  # torch's, which checks little
    if unpickler or "mmap can only" in str(error):
        return "it is damaged, or not a file that torch.save wrote"
    return str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__


def _refuse_compressed(file: IO[bytes], size: int) -> None:
    """Raise if an archive is compressed; torch stores tensors uncompressed, so it would be a zip bomb.

    An archive that two readers could read differently is refused: one with a comment, which may hold a second list of
    its content, or with a 64-bit end record that does not lie before the usual one.
    """
    # The last 22 bytes are the end record; torch writes a 64-bit one (56 bytes) and its locator (20 bytes) before it.
    ends = file.seek(max(0, size - 98)) and file.read()
    locator = ends[-42:-22] if ends else b""
    moved = locator[:4] == b"PK\6\7" and int.from_bytes(locator[8:16], "little") != size - 98
    if not ends or ends[-22:-18] != b"PK\5\6" or ends[-2:] != b"\0\0" or moved:
        raise ValueError("its list of content does not stand at its end")
    with zipfile.ZipFile(file) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
        names = [name.rpartition("/")[2] for name in archive.namelist()]
    if "constants.pkl" in names:
        raise ValueError("it is a TorchScript program; torch.save(model.state_dict(), …) writes its weights")
    if any(name.endswith(".npy") for name in names):
        raise ValueError("it holds arrays of NumPy; torch.save of a dict of tensors writes weights")
    if unpacked > size:
        raise ValueError(f"it would unpack to {unpacked:,} bytes")


def _tensors(content: Any, depth: int, seen: set[int], allowed: tuple[type, ...]) -> Iterator[Tensor]:
    """Yield all tensors once; anything but plain data is refused."""
    if depth == 0:
        raise ValueError("it is nested too deeply")
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, dict | list | tuple | set):
        if id(content) in seen:  # lists that contain each other would take for ever
            return
        seen.add(id(content))
        for key in content if isinstance(content, dict) else ():
            if not isinstance(key, str | int | float | tuple):
                raise ValueError(f"it has a {type(key).__name__} as a key")
        for value in content.values() if isinstance(content, dict) else content:
            yield from _tensors(value, depth - 1, seen, allowed)
    elif isinstance(content, allowed):
        yield from _tensors(vars(content), depth - 1, seen, allowed)
    elif content is not None and not isinstance(content, _PLAIN):
        raise ValueError(f"it holds a {type(content).__name__}")
