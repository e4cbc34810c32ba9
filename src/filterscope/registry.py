"""The registry of everything that can be added (data sets, models, visuals …), and the check of their options' values.

What is registered can be named in a config and rebuilt from a checkpoint; nothing else is ever built from a file. Other
packages add their own parts with the same decorator, in a module that they name in the entry point group
`filterscope.plugins`.
"""

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pkgutil import walk_packages
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from filterscope.errors import UserError, as_written, suggestion

Kind = Literal["augmentation", "data", "head", "measure", "model", "objective", "policy", "visual"]
PLUGINS = "filterscope.plugins"
"""The entry point group in which a package names the module that registers its parts."""

_PACKAGES: dict[Kind, str] = {
    "augmentation": "filterscope.data",
    "data": "filterscope.data",
    "head": "filterscope.models",
    "measure": "filterscope.analysis.health",
    "model": "filterscope.models",
    "objective": "filterscope.analysis.synthesis",
    "policy": "filterscope.training",
    "visual": "filterscope.visuals",
}
_registered: dict[Kind, dict[str, Any]] = {kind: {} for kind in get_args(Kind)}
_loaded: set[str] = set()

T = TypeVar("T")

_WORDS = {int: "an integer", float: "a number", str: "a text", bool: "true or false", type(None): "null"}
_PLURALS = {"an integer": "integers", "a number": "numbers", "a text": "texts"}
_BOUNDS = {"ge": "of at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}"}


def register(kind: Kind, name: str = "") -> Callable[[T], T]:
    """Return a decorator that registers a class or function.

    Args:
        kind: what is added, such as `visual`.
        name: under which it is found; empty: the object's own name.

    Raises:
        ValueError: the kind does not exist, or another object is registered under that name.
    """
    if kind not in _registered:
        raise ValueError(f"nothing of the kind {kind!r} can be registered; possible are {', '.join(_registered)}")

    def add(part: T) -> T:
        key = name or part.__name__  # type: ignore[attr-defined]
        known = _registered[kind].get(key)
        if known is not None and target_of(known) != target_of(part):
            raise ValueError(f"{kind} {key!r} is registered already, by {target_of(known)}")
        _registered[kind][key] = part
        return part

    return add


def registered(kind: Kind) -> dict[str, Any]:
    """Return everything that is registered of a kind, by name: the parts of filterscope and those of plugins."""
    _load_package(_PACKAGES[kind])
    load_plugins()
    return dict(sorted(_registered[kind].items()))


def find(kind: Kind, name: str) -> Any:
    """Return what is registered under a name.

    Raises:
        UserError: nothing is; the message names the nearest one.
    """
    known = registered(kind)
    if name not in known:
        raise UserError(f"unknown {kind} {name!r}{suggestion(name, known)}; possible are {', '.join(known)}")
    return known[name]


def is_registered(target: str, kinds: Iterable[Kind] = get_args(Kind)) -> bool:
    """Return whether a dotted name, as in `_target_`, is that of a registered object.

    Only modules of filterscope and of installed plugins are imported to find out, whatever the name says.
    """
    module = target.rpartition(".")[0]
    if module.startswith("filterscope."):
        try:
            import_module(module)
        except (ImportError, ValueError):
            return False
    else:
        load_plugins()
    return any(target_of(part) == target for kind in kinds for part in _registered[kind].values())


def load_plugins() -> None:
    """Import the modules that installed packages name in the entry point group `filterscope.plugins`, once.

    Raises:
        UserError: one of them cannot be imported.
    """
    for plugin in _plugins():
        if plugin.value in _loaded:
            continue
        _loaded.add(plugin.value)
        try:
            plugin.load()
        except Exception as error:
            raise UserError(f"the plugin {plugin.name} ({plugin.value}) cannot be imported: {error}") from error


@cache
def _plugins() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=PLUGINS))  # reads the metadata of all installed packages


def target_of(part: Any) -> str:
    """Return the dotted name under which an object can be imported."""
    return f"{part.__module__}.{part.__qualname__}"


def _load_package(name: str) -> None:
    if name in _loaded:
        return
    _loaded.add(name)
    package = import_module(name)
    for module in walk_packages(package.__path__, f"{name}."):
        import_module(module.name)


def check_fields(part: Any, *, where: str) -> None:
    """Check the options of an object, the fields of its dataclass, and convert them to their types.

    Raises:
        UserError: an option has another type, or is out of its range.
    """
    kind: Any = type(part)
    for name, hint in _field_types(kind).items():
        object.__setattr__(part, name, check_value(getattr(part, name), hint, where=f"{where}.{name}"))


@cache
def _field_types(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return {option.name: hints[option.name] for option in dataclasses.fields(kind)}


def check_value(value: Any, hint: Any, *, where: str) -> Any:
    """Return a value, converted to a type, which may be `Annotated` with a range; a number must be finite.

    Raises:
        UserError: it has another type or lies out of range; the message says what is possible.
    """
    from pydantic import ValidationError  # not at the top: `--help` needs no pydantic

    if hint is Any or (isinstance(hint, type) and isinstance(value, hint) and not isinstance(value, bool | float)):
        return value
    problem, finite = "it has another type", ""
    try:
        # Pydantic takes true for 1, and 1 for true.
        if isinstance(value, bool) if hint is bool else not _holds_bool(value) or _accepts_bool(hint):
            return _adapter(hint).validate_python(value)
    except ValidationError as error:
        problem = error.errors()[0]["msg"].removeprefix("Value error, ")
        finite = ", and finite" if any(each["type"] == "finite_number" for each in error.errors()) else ""
    possible = possible_values(hint)
    problem = f"must be {possible}{finite}" if possible else problem[:1].lower() + problem[1:]
    raise UserError(f"{where}={as_written(value)}: {problem}")


@cache
def _adapter(hint: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    config = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
    return TypeAdapter(hint, config=None if dataclasses.is_dataclass(hint) else config)


def possible_values(hint: Any) -> str:
    """Return the values that a type allows in words, such as `an integer of at least 1 or null`; empty: no words."""
    words = _alternatives(hint)
    return "" if not all(words) else f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]


def _alternatives(hint: Any) -> list[str]:
    """Return the words for each alternative of a type; an empty word where there is none."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        filled = any(getattr(bound, "min_length", 0) for bound in _bounds(arguments[1:]))
        words = [each if each == "null" else each + _range(arguments[1:]) for each in _alternatives(arguments[0])]
        words = [each.replace("an integer above 0", "an integer of at least 1") for each in words]  # `PositiveInt`
        return [re.sub("^a (list|mapping|text)", r"a non-empty \1", each) if filled else each for each in words]
    if origin is Literal:
        return [as_written(word).strip("'") for word in arguments]
    if origin in (Union, types.UnionType):
        ordered = sorted(arguments, key=lambda each: each is type(None))
        return list(dict.fromkeys(word for each in ordered for word in _alternatives(each)))
    if inspect.isclass(origin) and issubclass(origin, Sequence):
        count = f"{len(arguments)} " if origin is tuple and Ellipsis not in arguments else ""
        return [f"a list of {count}{many}" if (many := _plural(arguments[0])) else "a list"]
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return [f"a mapping of names to {many}" if (many := _plural(arguments[1])) else ""]
    return _WORDS.get(hint, "").split(" or ")


def _plural(hint: Any) -> str:
    """Return the words for several values of a type; empty: no words."""
    words = possible_values(hint)
    for one, many in _PLURALS.items():
        words = words.replace(one, many)
    return words


def _range(metadata: tuple[Any, ...]) -> str:
    bounds = _bounds(metadata)
    found = [
        text.format(getattr(bound, name)) for name, text in _BOUNDS.items() for bound in bounds if hasattr(bound, name)
    ]
    return " " + " and ".join(found) if found else ""


def _bounds(metadata: tuple[Any, ...]) -> list[Any]:
    return [bound for each in metadata for bound in getattr(each, "metadata", [each])]


def _holds_bool(value: Any) -> bool:
    if isinstance(value, list | tuple | dict):
        return any(map(_holds_bool, value.values() if isinstance(value, dict) else value))
    return isinstance(value, bool)


def _accepts_bool(hint: Any) -> bool:
    if hint in (bool, Any, object) or hint is inspect.Parameter.empty:
        return True
    return any(isinstance(each, bool) or _accepts_bool(each) for each in get_args(hint))
