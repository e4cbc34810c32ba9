"""Run a network and record its layers without changing it or the random numbers that follow."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from filterscope.models.classifier import Classifier
from filterscope.models.layers import find_layer
from filterscope.models.network_copy import evaluating, same_random_numbers

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


def run_model(model: nn.Module, images: Tensor, part: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Return the output of a model, or of a part of it, on its device and in the precision of `compute_precision`."""
    with _precision.get()():
        output: Tensor = (part or model)(images.to(device_of(model)))
    return output


@contextmanager
def observing(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode within the block, and give it back exactly as it was (`restored`).

    Random states stay as they are (`same_random_numbers`). Inside, inference mode is off and gradients are on,
    whatever the caller set, so that gradients of images can be computed (with `torch.autograd.grad`, never
    `.backward()`), and compiled modules run uncompiled, because compiled code leaves hooks out.
    """
    devices = sorted({p.get_device() for p in model.parameters() if p.is_cuda})
    with (
        evaluating(model),
        same_random_numbers(devices),
        torch.inference_mode(mode=False),
        torch.compiler.set_stance("force_eager"),
    ):
        yield


class Tap(NamedTuple):
    """A module, and which of its runs in a forward pass is recorded, of how many."""

    module: nn.Module
    call: int = 0
    calls: int = 1


@contextmanager
def recording(
    network: nn.Module, taps: Mapping[str, Tap], reduce: Callable[[Tensor], T], *, copied: bool = False
) -> Iterator[dict[str, T]]:
    """Record the outputs of modules while the caller runs the network inside the block.

    Args:
        network: contains the modules; each forward pass of it counts their runs anew.
        taps: by the name under which each is recorded.
        reduce: is called with each output and returns what is recorded of it.
        copied: pass a copy of each recorded output on, so that no in-place operation can overwrite what was recorded.

    Yields:
        A dict that every forward pass fills anew.
    """
    recorded: dict[str, T] = {}
    runs = dict.fromkeys(taps, 0)

    def record(name: str, _module: nn.Module, _inputs: object, output: Tensor) -> Tensor | None:
        # The remainder counts where the modules run without the network's own forward.
        number, runs[name] = runs[name] % taps[name].calls, runs[name] + 1
        if number != taps[name].call:
            return None
        recorded[name] = reduce(output)
        return output.clone() if copied else None

    with ExitStack() as stack:
        reset = network.register_forward_pre_hook(lambda *_: runs.update(dict.fromkeys(taps, 0)))
        stack.callback(reset.remove)
        for name, tap in taps.items():
            stack.callback(tap.module.register_forward_hook(partial(record, name)).remove)
        yield recorded


def taps_of(classifier: Classifier, layers: Iterable[str]) -> dict[str, Tap]:
    """Return where named layers are recorded."""
    found = {name: find_layer(classifier.layers, name) for name in layers}
    return {name: Tap(classifier.get_submodule(each.path), each.call, each.calls) for name, each in found.items()}


def tapping(classifier: Classifier, layers: Sequence[str]) -> AbstractContextManager[dict[str, Tensor]]:
    """Record the outputs of named layers inside the block, attached to the graph if there is one.

    A convolution's output is the one before its ReLU, also where that works in place.
    """
    taps = taps_of(classifier, layers)
    return recording(classifier.backbone.network, taps, lambda output: output, copied=True)


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's parameters."""
    return next(iter(model.parameters())).device
