"""The registry of everything that can be added: data sets, models, heads, policies, visuals, objectives, measures.

What is registered can be named in a config and rebuilt from a checkpoint; nothing else is ever built from a file. Other
packages add their own parts with the same decorator, in a module that they name in the entry point group
`filterscope.plugins`.
"""

from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pkgutil import walk_packages
from typing import Any, Literal, TypeVar, get_args

from filterscope.errors import UserError, suggestion

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
