"""Run a network and record its layers without changing it or the random numbers that follow."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from filterscope.models.classifier import Classifier
from filterscope.models.layers import hooks_of

T = TypeVar("T")
Precision = Callable[[], AbstractContextManager[Any]]

_precision: ContextVar[Precision] = ContextVar("precision", default=nullcontext)


@contextmanager
def compute_precision(precision: Precision) -> Iterator[None]:
    """Let `run_model` compute in a precision inside the block: `precision` opens an autocast."""
    token = _precision.set(precision)
    try:
        yield
    finally:
        _precision.reset(token)


def run_model(model: nn.Module, images: Tensor) -> Tensor:
    """Return the model's output for images, on its device and in the precision of `compute_precision`."""
    with _precision.get()():
        output: Tensor = model(images.to(device_of(model)))
    return output


@contextmanager
def observing(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode within the block, and restore it exactly as it was afterwards.

    Every module gets its own training flag back, the random states of CPU and GPUs are forked, and hooks that were
    added inside are removed, also after an exception. Inside, inference mode is off and gradients are on, whatever the
    caller set, so that gradients of images can be computed (with `torch.autograd.grad`, never `.backward()`).
    """
    flags = {module: module.training for module in model.modules()}
    hooks = [(hooks, set(hooks)) for module in model.modules() for hooks in hooks_of(module)]
    devices = sorted({p.get_device() for p in model.parameters() if p.is_cuda})
    try:
        model.eval()
        with torch.random.fork_rng(devices=devices), torch.inference_mode(False):
            yield
    finally:
        for module, training in flags.items():
            module.training = training
        for registered, before in hooks:
            for key in [key for key in registered if key not in before]:
                del registered[key]


@contextmanager
def recording(modules: Mapping[str, nn.Module], reduce: Callable[[Tensor], T]) -> Iterator[dict[str, T]]:
    """Record the outputs of modules while the caller runs the network inside the block.

    Args:
        modules: by the name under which each is recorded.
        reduce: is called with each output and returns what is recorded of it.

    Yields:
        A dict that every forward pass fills anew.
    """
    recorded: dict[str, T] = {}
    handles = []

    def record(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            recorded[name] = reduce(output)

        return hook

    try:
        for name, module in modules.items():
            handles.append(module.register_forward_hook(record(name)))
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


def tapping(classifier: Classifier, layers: Sequence[str]) -> AbstractContextManager[dict[str, Tensor]]:
    """Record the outputs of named layers inside the block, attached to the graph if there is one.

    A convolution's output is the one before its ReLU: `Backbone` switches in-place modules off, and outputs are cloned
    because functional in-place operations would still overwrite them.
    """
    return recording({name: classifier.module_of(name) for name in layers}, Tensor.clone)


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's parameters."""
    return next(iter(model.parameters())).device
