"""Looking at a network without leaving a trace in it or in what comes after."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from filterscope.analysis.reductions import note_rectified
from filterscope.models.classifier import Classifier

T = TypeVar("T")
Precision = Callable[[], AbstractContextManager[Any]]

_precision: ContextVar[Precision] = ContextVar("precision", default=nullcontext)


@contextmanager
def compute_precision(precision: Precision) -> Iterator[None]:
    """Let `run` compute in a precision inside the block: `precision` opens an autocast."""
    token = _precision.set(precision)
    try:
        yield
    finally:
        _precision.reset(token)


def run_model(model: nn.Module, images: Tensor) -> Tensor:
    """Return what the model makes of images, on its device and in the precision of `computing_in`."""
    with _precision.get()():
        output: Tensor = model(images.to(device_of(model)))
    return output


@contextmanager
def observing(model: nn.Module) -> Iterator[None]:
    """Hold the model in evaluation mode and give it back exactly as it was.

    Every module gets its own training flag back, the random states of CPU and GPUs are forked, and hooks that were
    added inside are removed, also after an exception. Inside, inference mode is off and gradients are on, whatever the
    caller set, so that those of images can be taken (with `torch.autograd.grad`, never `.backward()`).
    """
    flags = {module: module.training for module in model.modules()}
    hooks = [(kept, set(kept)) for module in model.modules() for kept in _hooks_of(module)]
    devices = sorted({p.get_device() for p in model.parameters() if p.is_cuda})
    try:
        model.eval()
        with torch.random.fork_rng(devices=devices), torch.inference_mode(False):
            yield
    finally:
        for module, training in flags.items():
            module.training = training
        for kept, before in hooks:
            for key in [key for key in kept if key not in before]:
                del kept[key]


@contextmanager
def tapping(classifier: Classifier, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect what the named layers put out while the block runs: `{name as asked for: output}`.

    A convolution's output is the one before its ReLU. The dict is filled anew by every forward pass and holds the
    outputs themselves (attached to the graph where there is one); an in-place successor cannot change them because
    `Backbone` switches in-place modules off.
    """
    outputs: dict[str, Tensor] = {}
    handles = []

    def keep(name: str) -> None:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            # Functional in-place operations would still write into the tensor itself.
            outputs[name] = output.clone()

        handles.append(classifier.module_of(name).register_forward_hook(hook))

    try:
        for name in layers:
            keep(name)
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def recording_outputs(
    classifier: nn.Module, modules: Mapping[str, nn.Module], look: Callable[[Tensor], T]
) -> Iterator[Callable[[], dict[str, T]]]:
    """Look at what modules put out while somebody else runs the network.

    Where the module that comes next is a ReLU that takes these maps, `look` sees them when that one is done, with what
    it made of them noted at them; others are kept until the pass has ended. Yields a function to be called after each
    forward pass, which returns what `look` made of each module's output.
    """
    after = dict(zip(known := list(classifier.modules()), known[1:], strict=False))
    waiting: dict[str, Tensor] = {}
    looked: dict[str, T] = {}
    handles = []

    def watch(name: str, module: nn.Module) -> None:
        def put_out(_module: nn.Module, _inputs: object, maps: Tensor) -> None:
            waiting[name] = maps

        def rectify(_module: nn.Module, inputs: tuple[Tensor, ...], rectified: Tensor) -> None:
            if waiting.get(name) is inputs[0]:
                note_rectified(inputs[0], rectified)
                looked[name] = look(waiting.pop(name))

        handles.append(module.register_forward_hook(put_out))
        following = after.get(module)
        if isinstance(following, nn.ReLU) and not following.inplace:
            handles.append(following.register_forward_hook(rectify))

    def finish() -> dict[str, T]:
        seen = looked | {name: look(maps) for name, maps in waiting.items()}
        looked.clear()
        waiting.clear()
        return seen

    try:
        for name, module in modules.items():
            watch(name, module)
        yield finish
    finally:
        for handle in handles:
            handle.remove()


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's parameters."""
    return next(iter(model.parameters())).device


def _hooks_of(module: nn.Module) -> list[dict[int, Any]]:
    """All dicts in which a module keeps hooks, by the keys of their handles."""
    return [
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    ]
