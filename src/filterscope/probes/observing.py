"""Looking at a network without leaving a trace in it or in what comes after."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from filterscope.models.classifier import Classifier


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
