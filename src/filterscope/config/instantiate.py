"""From a config node to the object that its `_target_` names; the target's signature is the schema."""

import inspect
import typing
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from hydra.utils import get_object
from pydantic import ConfigDict, TypeAdapter, ValidationError

from filterscope.errors import UserError, suggestion

Config = dict[str, Any]


def instantiate(node: Config, *, where: str, allowed: frozenset[str] | None = None, **extra: Any) -> Any:
    """Build the object that a config node describes by its `_target_`, or a partial of it with `_partial_: true`.

    The target's signature is the schema: a key it does not have and a value of another type are errors before it is
    called. Nodes below with a `_target_` are built first.

    Args:
        node: plain data.
        where: the node's place in the config, for messages.
        allowed: the only targets that may be built, None for any; configs out of files come with a list.
        extra: more arguments.
    """
    name = str(node["_target_"])
    if allowed is not None and name not in allowed:
        raise UserError(f"{where}._target_={name[:80]!r} is not something filterscope builds from a file")
    try:
        target = get_object(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{where}._target_={name!r} cannot be imported: {error}") from error
    knobs = {
        key: _built(value, where=f"{where}.{key}", allowed=allowed)
        for key, value in node.items()
        if key not in ("_target_", "_partial_")
    }
    arguments = check_arguments(target, knobs, where=where) | extra
    return partial(target, **arguments) if node.get("_partial_") else target(**arguments)


def _built(value: Any, *, where: str, allowed: frozenset[str] | None) -> Any:
    """Return what a knob says, with nodes that have a `_target_` built, also those in a plain dict of them."""
    if not isinstance(value, dict):
        return value
    if "_target_" in value:
        return instantiate(value, where=where, allowed=allowed)
    return {key: _built(each, where=f"{where}.{key}", allowed=allowed) for key, each in value.items()}


def check_arguments(target: Callable[..., Any], knobs: Mapping[str, Any], *, where: str) -> Config:
    """Return the knobs in the types that the target declares.

    Raises:
        UserError: a knob that the target does not have (with those it has), or a value of another type.
    """
    parameters = inspect.signature(target).parameters
    hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target, include_extras=True)
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    checked: Config = {}
    for key, value in knobs.items():
        if key not in parameters and not open_ended:
            raise UserError(f"{where} has no knob {key!r}{suggestion(key, parameters)}; it has {', '.join(parameters)}")
        checked[key] = _checked(value, hints.get(key, Any), where=f"{where}.{key}")
    return checked


def _checked(value: Any, hint: Any, *, where: str) -> Any:
    if isinstance(hint, type) and isinstance(value, hint) and not isinstance(value, bool):
        return value
    try:
        return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{where}={value!r}: {first['msg'][0].lower()}{first['msg'][1:]}") from error
