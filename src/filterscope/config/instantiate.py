"""Build the object that a config node names with `_target_`; the target's signature is the schema of the node."""

import inspect
import logging
import types
import typing
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

from hydra.utils import get_object

from filterscope.errors import UserError, as_written, first_line, printable, suggestion
from filterscope.registry import check_value

Config = dict[str, Any]
Kind: TypeAlias = type | tuple[type, ...]

logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # it logs the errors of `get_object` in several lines

_EXTRAS = ("wandb", "mlflow")


def instantiate(
    node: Config,
    *,
    where: str,
    kind: Kind | None = None,
    as_partial: bool = False,
    allowed: Callable[[str], bool] | None = None,
    offered: Mapping[str, Any] | None = None,
    narrower: Mapping[str, Any] | None = None,
    **extra: Any,
) -> Any:
    """Build the object that a config node names with `_target_`, or a partial of it with `_partial_: true`.

    Options are checked against the target's signature before it is called. Nodes inside the node that have a
    `_target_` are built first.

    Args:
        node: plain data.
        where: the node's place in the config, for messages.
        kind: the class that must be built, or several; None: any. A function that declares to return another is not
            called.
        as_partial: whether the node must set `_partial_: true`, if `kind` is given.
        allowed: whether a target may be built; None: any. Required for configs that were read from a file.
        offered: arguments that the target gets if it has parameters of these names and the node does not set them.
        narrower: types that replace those of the signature, by parameter.
        extra: further arguments.

    Raises:
        UserError: the target cannot be imported, is not allowed or builds something else, the target has no such
            option, a value has the wrong type or lies out of range, or a function of another package refuses its
            arguments.
    """
    if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
        raise UserError(
            f"{where}={printable(as_written(node), longest=100)}: must be options with a _target_, a dotted name"
        )
    name = node["_target_"]
    if allowed is not None and not allowed(name):
        raise UserError(f"{where}._target_={name[:80]!r} is not something filterscope builds from a file")
    try:
        target = get_object(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{where}._target_={name!r} cannot be imported: {error}") from error
    if kind is not None and as_partial != bool(node.get("_partial_")):
        raise UserError(f"{where}._partial_={as_written(node.get('_partial_'))}: must be {as_written(as_partial)}")
    declared = target if inspect.isclass(target) else _returned(target)
    if not callable(target) or (kind is not None and isinstance(declared, type) and not issubclass(declared, kind)):
        raise _other_kind(name, where, kind)
    try:
        parameters = _parameters(target)
    except ValueError as error:  # many functions written in C do not tell their parameters
        raise UserError(f"{where}._target_={name!r} cannot be called: {error}") from error
    options = {
        key: _built(value, where=f"{where}.{key}", allowed=allowed)
        for key, value in node.items()
        if key not in ("_target_", "_partial_")
    }
    arguments = check_arguments(target, options, where=where, narrower=narrower) | extra
    arguments |= {key: each for key, each in (offered or {}).items() if key in parameters and key not in arguments}
    call = _Call(target, **arguments)
    call.name, call.where, call.kind = name, where, kind
    if node.get("_partial_"):
        return call
    _check_complete(parameters, arguments, where)
    return call()


class _Call(partial[Any]):
    """A partial of a target that turns errors into `UserError` and checks the class of the result."""

    name: str
    where: str
    kind: Kind | None

    def __call__(self, /, *args: Any, **keywords: Any) -> Any:
        try:
            inspect.signature(self).bind(*args, **keywords)
        except TypeError as error:
            raise UserError(f"{self.where}._target_={self.name!r} has other parameters: {error}") from error
        try:
            built = super().__call__(*args, **keywords)
        except Exception as error:  # functions of other packages refuse an option with any exception
            if self.name.startswith("filterscope.") or isinstance(error, UserError):
                raise
            extras = [each for each in _EXTRAS if isinstance(error, ImportError) and self.where.endswith(each)]
            install = f'; pip install "filterscope[{extras[0]}]"' if extras else ""
            raise UserError(f"{self.where}: {first_line(error)}{install}") from error
        if self.kind is not None and not isinstance(built, self.kind):
            raise _other_kind(self.name, self.where, self.kind)
        return built


def _other_kind(name: str, where: str, kind: Kind | None) -> UserError:
    first = kind[0] if isinstance(kind, tuple) else kind
    wanted = f"builds no {first.__module__}.{first.__qualname__}" if first else "is no class or function"
    return UserError(f"{where}._target_={name!r} {wanted}")


def _returned(target: Any) -> Any:
    """Return the type that a function declares to return, or None."""
    try:
        return typing.get_type_hints(target).get("return")
    except (NameError, TypeError):
        return None


def check_arguments(
    target: Callable[..., Any],
    options: Mapping[str, Any],
    *,
    where: str,
    narrower: Mapping[str, Any] | None = None,
) -> Config:
    """Return the options, converted to the types that the target declares.

    Raises:
        UserError: the target has no such option, or a value has the wrong type or lies out of range.
    """
    parameters = _parameters(target)
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    checked: Config = {}
    for key, value in options.items():
        if key not in parameters and not open_ended:
            raise UserError(
                f"{where} has no option {key!r}{suggestion(key, parameters)}; it has {', '.join(parameters)}"
            )
        hint = narrower[key] if narrower and key in narrower else _hint(target, key, parameters)
        checked[key] = check_value(value, hint, where=f"{where}.{key}")
    return checked


def _built(value: Any, *, where: str, allowed: Callable[[str], bool] | None) -> Any:
    """Return an option's value; nodes with a `_target_` are built, alone or as values of a dict."""
    if not isinstance(value, dict):
        return value
    if "_target_" in value:
        return instantiate(value, where=where, allowed=allowed)
    return {key: _built(each, where=f"{where}.{key}", allowed=allowed) for key, each in value.items()}


def _parameters(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a function, or of a class's `__init__` even if it has a `__new__` of its own."""
    if not inspect.isclass(target) or target.__init__ is object.__init__:
        return inspect.signature(target).parameters
    return {name: each for name, each in inspect.signature(target.__init__).parameters.items() if name != "self"}


def _hint(target: Callable[..., Any], key: str, parameters: Mapping[str, inspect.Parameter]) -> Any:
    """Return a parameter's type; `Any` if it cannot be resolved (wandb names types that it does not import)."""
    parameter = parameters.get(key)
    if parameter is None or parameter.annotation is inspect.Parameter.empty:
        return Any
    function = inspect.unwrap(target.__init__ if inspect.isclass(target) else target)
    holder = types.SimpleNamespace(__annotations__={key: parameter.annotation})
    try:
        return typing.get_type_hints(holder, getattr(function, "__globals__", {}), include_extras=True)[key]
    except NameError:
        return Any


def _check_complete(parameters: Mapping[str, inspect.Parameter], arguments: Config, where: str) -> None:
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for key, parameter in parameters.items():
        if key not in arguments and parameter.default is inspect.Parameter.empty and parameter.kind not in variable:
            raise UserError(f"{where}.{key} must be given")
