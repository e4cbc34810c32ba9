"""Which filters the inputs of each layer are, found by gradients through a run with constant outputs."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from filterscope.models.classifier import Classifier
from filterscope.models.forward_trace import FAILED, calls_without_values
from filterscope.models.network_copy import (
    copy_network,
    in_evaluation_mode,
    same_random_numbers,
    switch_off_inplace,
    without_values,
)

Filter = tuple[str, int]
"""Layer and number."""
Run = tuple[str, int]
"""Path of a module below the network, and which of its runs it is, from 0."""
IMAGE, HEAD, WHOLE = ("image", 0), ("head", 0), ("", 0)
ACTIVATION_FUNCTIONS = frozenset(
    {"relu", "relu_", "relu6", "hardtanh", "leaky_relu", "elu", "celu", "selu", "gelu", "silu", "mish", "hardswish"}
    | {"softplus", "tanh"}
)
NORM_FUNCTIONS = frozenset(
    {"batch_norm", "layer_norm", "group_norm", "instance_norm", "local_response_norm", "rms_norm"}
)
CONSTANTS = (64.0, 128.0)  # gates (sigmoids) of such large values are 1, and their gradients are 0


@dataclass(frozen=True, kw_only=True)
class LayerInputs:
    """What the input channels of a convolution, a Linear or the head are.

    Attributes:
        filters: for each input channel, the filters whose outputs (after norms, activations and pools) are added up in
            it: several behind the addition of a residual network. Gates, as in squeeze-and-excitation, are left out.
        image: whether the inputs are channels of the image.
    """

    filters: Sequence[Sequence[Filter]]
    image: bool = False

    @property
    def layers(self) -> list[str]:
        """The layers of these filters."""
        return list(dict.fromkeys(layer for each in self.filters for layer, _ in each))


def trace_inputs(classifier: Classifier, *, linears: bool = False) -> dict[str, LayerInputs]:
    """Return what the inputs of all convolutions and of a linear head are, by the layer's name.

    The network runs with outputs of convolutions and Linears that are constants, so that the gradients of a layer's
    input reach exactly those outputs that arrive there without passing another layer. Each element must arrive in one
    input channel only, with a gradient that does not depend on the constant. Layers where this does not hold
    (attention, products of two layers) and modules that run several times are left out.

    Args:
        classifier: is left as it was.
        linears: whether the inputs of all other Linears are told, too.
    """
    size, shapes = _smallest_size(classifier)
    prefix, layers = "backbone.network.", classifier.layers.values()
    names = {(layer.path.removeprefix(prefix), layer.call): layer.name for layer in layers}
    with same_random_numbers(), torch.inference_mode(mode=False), torch.enable_grad():
        try:
            passes = [_run_constants(classifier, shapes, value, size) for value in CONSTANTS]
        except FAILED:
            return {}
        found = {
            layer.name: _inputs_of((layer.path.removeprefix(prefix), 0), passes, names)
            for layer in layers
            if layer.calls == 1
            and (layer.kind == "conv" or layer.name == "head" or (linears and layer.kind == "linear"))
        }
    return {name: inputs for name, inputs in found.items() if inputs is not None}


class WithoutNonlinearities(TorchFunctionMode):
    """Leaves some functions out, and replaces max pools by average pools."""

    def __init__(self, left_out: frozenset[str]) -> None:
        super().__init__()
        self.left_out = left_out

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in self.left_out:
            return (args[0] if args else kwargs["input"]).clone()  # not the same tensor: it may be changed in place
        if name == "max_pool2d":
            return _average_pool(*args, **kwargs)
        return func(*args, **kwargs)


def _average_pool(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    del dilation, return_indices
    return F.avg_pool2d(input, kernel_size, stride or kernel_size, padding, ceil_mode)


def _smallest_size(classifier: Classifier) -> tuple[int, dict[Run, tuple[int, ...]]]:
    """Return an image size at which the network's output has its usual shape, and the output shapes of all modules."""
    shapes: dict[Run, tuple[int, ...]] = {}
    sizes = [size for size in (128, 64) if size < classifier.accepted_size]
    chosen = classifier.accepted_size
    for size in (chosen, *sizes):
        calls = calls_without_values(classifier.backbone.network, in_channels=classifier.in_channels, image_size=size)
        found = {(call.path, call.number): call.shape for call in calls or ()}
        if not shapes or (found and found[WHOLE] == shapes[WHOLE]):
            chosen, shapes = size, found
    return chosen, shapes


class _ConstantRun(NamedTuple):
    inputs: dict[Run, Tensor]
    outputs: dict[Run, Tensor]
    axes: dict[Run, int]  # of the outputs' channels


def _run_constants(
    classifier: Classifier, shapes: Mapping[Run, tuple[int, ...]], value: float, size: int
) -> _ConstantRun:
    """Run the network with a constant in place of the image and of each output of a convolution or Linear."""
    weighted = (nn.Conv2d, nn.Linear)
    modules = [each for each in classifier.backbone.network.modules() if isinstance(each, weighted)]
    unused = {id(tensor) for module in modules for tensor in module.parameters()}

    def convert(tensor: Tensor) -> Tensor:
        if id(tensor) in unused:
            return without_values(tensor)
        own = tensor.detach().cpu().clone()
        own = own.double() if own.is_floating_point() else own
        return nn.Parameter(own, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else own

    network = in_evaluation_mode(copy_network(classifier.backbone.network, convert))
    switch_off_inplace(network)
    run, numbers = _ConstantRun({}, {}, {IMAGE: 1}), Counter[str]()

    def constant(count: int, *shape: int) -> Tensor:
        return torch.full((count, *shape), value, dtype=torch.float64, requires_grad=True)

    def output(path: str, axis: int, given: Tensor) -> Tensor:
        at = (path, numbers[path])
        numbers[path] += 1
        run.inputs[at], run.outputs[at], run.axes[at] = given.clone(), constant(len(given), *shapes[at]), axis
        return run.outputs[at].clone()

    for path, module in network.named_modules():
        if isinstance(module, weighted):
            module.__dict__["forward"] = partial(output, path, -1 if isinstance(module, nn.Linear) else 1)
    run.outputs[IMAGE] = constant(3, classifier.in_channels, size, size)
    with WithoutNonlinearities(ACTIVATION_FUNCTIONS | NORM_FUNCTIONS):
        run.inputs[HEAD] = network(run.outputs[IMAGE].clone())
    return run


def _inputs_of(layer: Run, passes: Sequence[_ConstantRun], names: Mapping[Run, str]) -> LayerInputs | None:
    """Return what the inputs of a layer are, or None if that cannot be told."""
    if not all(layer in each.inputs and each.inputs[layer].requires_grad for each in passes):
        return None
    channels = passes[0].inputs[layer].shape[1]
    filters: list[list[Filter]] = [[] for _ in range(channels)]
    image = False
    gradients = [_probe_gradients(each, layer) for each in passes]
    for at, (first, second) in {at: tuple(each[at] for each in gradients) for at in passes[0].outputs}.items():
        if first is None and second is None:
            continue
        if first is None or second is None or first.shape[0] != 3 or not torch.allclose(first, second, rtol=1e-6):
            return None  # a product of two layers
        rows = first.movedim(passes[0].axes[at], 1)
        ones, means, squares = rows.reshape(3, rows.shape[1], -1)
        reached = ones != 0
        if bool(((means != 0) & ~reached).any()):
            return None
        if not bool(reached.any()):
            continue
        divisor = torch.where(reached, ones, 1.0)
        channel = means / divisor
        if bool(((squares / divisor - channel.square()).abs() > 1e-3).any()):
            return None  # an element that arrives in several channels
        image |= at == IMAGE
        for i, row in enumerate(channel.round().int() - 1 if at != IMAGE else ()):
            low = int(row[reached[i]].min()) if bool(reached[i].any()) else -1
            arrived = {low} if low == int(row.max()) else set(row[reached[i]].tolist())
            for j in arrived - {-1}:
                filters[j].append((names[at], i))
    return LayerInputs(filters=filters, image=image)


def _probe_gradients(run: _ConstantRun, layer: Run) -> dict[Run, Tensor | None]:
    """Return the gradients of three sums of a layer's input with respect to all outputs.

    The sums of the first, second and third image weigh channel c with 1, c + 1 and (c + 1)², so that the ratios of the
    gradients say in which channel an element arrives, and whether it arrives in others too.
    """
    given = run.inputs[layer]
    if len(given) != 3:
        return dict.fromkeys(run.outputs, torch.zeros(0, 1, 1))
    channel = torch.arange(1, given.shape[1] + 1, dtype=given.dtype)
    probes = torch.stack([torch.ones_like(channel), channel, channel.square()])
    total = (given * probes.reshape(3, -1, *[1] * (given.dim() - 2))).sum()
    gradients = torch.autograd.grad(total, list(run.outputs.values()), allow_unused=True, retain_graph=True)
    return dict(zip(run.outputs, gradients, strict=True))
