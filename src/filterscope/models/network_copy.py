"""Copies of networks that share their tensors, and a context manager that gives a network back as it was."""

import copy
import random
import re
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)

_CONTAINERS = (dict, OrderedDict, defaultdict, list, set, deque)


def copy_network(network: M, convert: Callable[[Tensor], Tensor], *, keep_hooks: bool = False) -> M:
    """Return a network with modules of its own and converted tensors; shared modules and tensors stay shared.

    No code of the network runs, so networks that refuse `deepcopy` can be copied too. Attributes that are neither
    modules, tensors nor containers of these (trainers, data sets, locks) are shared with the network.

    Args:
        network: is not changed.
        convert: returns the copy's tensor for each parameter, buffer and other tensor of the network.
        keep_hooks: whether the copy runs the network's hooks. Those of `torch.nn.utils`, which compute the weights of
            pruned and normalized layers, are always kept.
    """
    copies: dict[int, Any] = {}
    alive: list[Any] = []  # what is known by its id must not be freed meanwhile

    def copied(value: Any) -> Any:
        if id(value) in copies:
            return copies[id(value)]
        twin = value
        alive.append(value)
        if isinstance(value, nn.Module):
            twin = copies[id(value)] = object.__new__(type(value))
            for name, attribute in vars(value).items():
                hooks = _is_hooks(name) and not keep_hooks
                twin.__dict__[name] = copied(_computing_weights(attribute) if hooks else attribute)
            _run_uncompiled(twin)
        elif isinstance(value, Tensor):
            twin = copies[id(value)] = convert(value)
        elif type(value) in _CONTAINERS:
            twin = copies[id(value)] = copy.copy(value)
            _refill(twin, [(key, copied(item)) for key, item in _items(value)])
        elif type(value) is tuple:
            twin = tuple(map(copied, value))
        elif isinstance(value, types.MethodType):
            twin = types.MethodType(value.__func__, copied(value.__self__))
        elif isinstance(value, partial):
            options = {name: copied(option) for name, option in value.keywords.items()}
            twin = partial(copied(value.func), *map(copied, value.args), **options)
        elif isinstance(value, types.FunctionType) and value.__closure__:
            twin = copies[id(value)] = _with_cells(value, [copied(cell.cell_contents) for cell in _filled(value)])
        return twin

    result: M = copied(network)
    return result


def in_evaluation_mode(network: M) -> M:
    """Put every module of a network in evaluation mode and return it.

    `train` is not called: networks override it, and some then merge or freeze weights.
    """
    for module in network.modules():
        module.training = False
    return network


def share(tensor: Tensor) -> Tensor:
    """Return a tensor for a copy: a parameter on the same memory, a copy of a buffer, neither part of any graph."""
    own = tensor.detach()
    if isinstance(tensor, nn.Parameter) and not tensor.is_inference():
        return nn.Parameter(own, requires_grad=tensor.requires_grad)
    own = own.clone()  # what was made in inference mode cannot take part in gradients
    return nn.Parameter(own, tensor.is_floating_point()) if isinstance(tensor, nn.Parameter) else own


def without_values(tensor: Tensor) -> Tensor:
    """Return a tensor for a copy that has a shape and a type, but no values."""
    empty = tensor.detach().to("meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


@contextmanager
def restored(network: nn.Module) -> Iterator[None]:
    """Give a network back at the end of the block as it was at its start, also after an exception.

    Every module gets its attributes back (training flag, hooks, parameters, submodules, whatever forward passes
    stored), containers their items, and buffers their values. Values of cached properties stay.
    """
    modules = [(module, dict(vars(module))) for module in network.modules()]
    containers = {
        id(value): (value, _items(value))
        for _, attributes in modules
        for value in attributes.values()
        if type(value) in _CONTAINERS
    }
    buffers = [(buffer, buffer.detach().clone()) for buffer in network.buffers()]
    try:
        yield
    finally:
        for module, attributes in modules:
            state = vars(module)
            state.update(attributes)
            for name in state.keys() - attributes.keys():
                if not isinstance(getattr(type(module), name, None), cached_property):
                    del state[name]
        for value, items in containers.values():
            now = _items(value)
            if len(now) != len(items) or any(a is not b or k != j for (k, a), (j, b) in zip(now, items, strict=True)):
                _refill(value, items)
        with torch.no_grad():
            for buffer, before in buffers:
                # Not written to without need: a graph of the caller may still use the buffer.
                if not buffer.is_meta and not _same_values(buffer, before):
                    buffer.resize_(before.shape).copy_(before)  # the observers of quantization resize theirs


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network in evaluation mode within the block, and give it back as it was (`restored`)."""
    with restored(network):
        in_evaluation_mode(network)
        yield


@contextmanager
def same_random_numbers(devices: Collection[int] = ()) -> Iterator[None]:
    """Leave the random states of torch, Python and NumPy as they are before the block; `devices` are those of CUDA.

    A state that the block did not change is not written, so that other threads may draw numbers meanwhile.
    """
    python, cpu = random.getstate(), torch.get_rng_state()
    numpy: Any = np.random.get_state()  # noqa: NPY002
    cuda = {device: torch.cuda.get_rng_state(device) for device in devices}
    try:
        yield
    finally:
        if random.getstate() != python:
            random.setstate(python)
        now: Any = np.random.get_state()  # noqa: NPY002
        if any(not np.array_equal(a, b) for a, b in zip(now, numpy, strict=True)):
            np.random.set_state(numpy)  # noqa: NPY002
        if not torch.equal(torch.get_rng_state(), cpu):
            torch.set_rng_state(cpu)
        for device, state in cuda.items():
            torch.cuda.set_rng_state(state, device)


def switch_off_inplace(network: nn.Module) -> None:
    """Let in-place modules (ReLU, Dropout …) return new tensors, which changes no value."""
    for module in network.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]


def hooks_of(module: nn.Module) -> list[dict[int, Any]]:
    """Return the dictionaries in which torch keeps the forward and backward hooks of a module, by handle id.

    These are attributes such as `_forward_pre_hooks`; torch has no public way to list or to leave out hooks.
    """
    return [value for name, value in vars(module).items() if _is_hooks(name)]


def unwrapped(network: nn.Module) -> nn.Module:
    """Return the network inside the wrappers of libraries: compiled, data-parallel, averaged, Lightning Fabric's."""
    inner = getattr(network, "_orig_mod", None)
    if inner is None and type(network).__module__.startswith(("torch.", "lightning", "accelerate.", "deepspeed.")):
        inner = getattr(network, "module", None)
    return unwrapped(inner) if isinstance(inner, nn.Module) and inner is not network else network


def _is_hooks(name: str) -> bool:
    return re.match(r"_(forward|backward)(_pre)?_hooks", name) is not None


def _computing_weights(hooks: Any) -> Any:
    kept = [(key, hook) for key, hook in hooks.items() if type(hook).__module__.startswith("torch.nn.utils.")]
    return OrderedDict(kept) if isinstance(hooks, dict) else hooks


def _run_uncompiled(module: nn.Module) -> None:
    """Let the copy of a compiled module run the copy of the original, whose hooks compiled code would leave out."""
    state = vars(module)
    if "_compiled_call_impl" in state:
        state["_compiled_call_impl"] = None
    if "_orig_mod" in state.get("_modules", {}):
        state["forward"] = state["_modules"]["_orig_mod"]


def _filled(function: types.FunctionType) -> list[types.CellType]:
    """Return the variables of a function's surroundings that have a value, or none if the function is one of them."""
    cells = list(function.__closure__ or ())
    try:
        return [] if any(cell.cell_contents is function for cell in cells) else cells
    except ValueError:  # one is not set yet
        return []


def _with_cells(function: types.FunctionType, values: list[Any]) -> types.FunctionType:
    """Return a function with other values of the variables around it; the function itself if they are the same."""
    if all(value is cell.cell_contents for value, cell in zip(values, _filled(function), strict=True)):
        return function
    cells = tuple(map(types.CellType, values))
    twin = types.FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, cells)
    twin.__kwdefaults__ = function.__kwdefaults__
    return twin


def _items(container: Any) -> list[tuple[Any, Any]]:
    return list(container.items()) if isinstance(container, dict) else [(None, item) for item in container]


def _refill(container: Any, items: list[tuple[Any, Any]]) -> None:
    container.clear()
    if isinstance(container, dict):
        container.update(items)
    elif isinstance(container, set):
        container.update(item for _, item in items)
    else:
        container.extend(item for _, item in items)


def _same_values(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors of one shape are equal, NaN being equal to NaN."""
    if torch.equal(one, other) or not (one.is_floating_point() and one.shape == other.shape):
        return torch.equal(one, other)
    return bool(((one == other) | (one.isnan() & other.isnan())).all())
