"""The connections of filters: which filters a layer takes as inputs, how it weighs them, what they add to logits."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from filterscope.analysis.health.recorder import output_layer
from filterscope.analysis.hooks import device_of, observing, run_model, tapping
from filterscope.analysis.synthesis.network import TruncatedNetwork
from filterscope.models.classifier import Classifier
from filterscope.models.forward_trace import FAILED, calls_without_values
from filterscope.models.layers import convolutions, find_layer
from filterscope.models.network_copy import copy_network, same_random_numbers, switch_off_inplace, without_values

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
MAX_SIDE = 256  # pixels of the inputs that expanded weights are looked for in


@dataclass(frozen=True, kw_only=True)
class LayerInputs:
    """What the input channels of a convolution or of the head are.

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


def trace_inputs(classifier: Classifier) -> dict[str, LayerInputs]:
    """Return what the inputs of all convolutions and of a linear head are, by the layer's name.

    The network runs with outputs of convolutions and Linears that are constants, so that the gradients of a layer's
    input reach exactly those outputs that arrive there without passing another layer. Each element must arrive in one
    input channel only, with a gradient that does not depend on the constant. Layers where this does not hold
    (attention, products of two layers) and modules that run several times are left out.
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
            if layer.calls == 1 and (layer.kind == "conv" or layer.name == "head")
        }
    return {name: inputs for name, inputs in found.items() if inputs is not None}


def kernel_shares(classifier: Classifier, layer: str) -> tuple[Tensor, Tensor]:
    """Return how each filter of a convolution, or class of a linear head, divides its weight among its inputs.

    Returns:
        The share of each input channel in the squared weights, in [0, 1]; and the sum of its weights over the sum of
        their absolute values, in [−1, 1]. Both `(filters, input channels)`, zero for channels of other groups.
    """
    module = classifier.module_of(layer)
    weights = module.get_parameter("weight").detach().float().cpu()
    weights = weights.flatten(2) if weights.dim() > 2 else weights[..., None]
    energy, least = weights.square().sum(2), torch.finfo(weights.dtype).tiny
    shares = energy / energy.sum(1, keepdim=True).clamp_min(least)
    signs = weights.sum(2) / weights.abs().sum(2).clamp_min(least)
    count = getattr(module, "groups", 1)
    if count > 1:  # the filters of a group see the channels of that group only
        shares, signs = (_block_diagonal(each, count) for each in (shares, signs))
    return shares, signs


def expanded_weights(classifier: Classifier, layer: str, before: str) -> Tensor | None:
    """Return the kernels of a convolution multiplied out with those of the layer before it (Voss et al. 2021).

    They are what each filter would compute from the inputs of the layer before if nothing between were nonlinear:
    activation functions are left out, max pools are average pools.

    Args:
        classifier: is left as it was.
        layer: a convolution.
        before: the only convolution whose outputs are the inputs of `layer`.

    Returns:
        `(filters, input channels of before, height, width)`; None if what is between is not linear even so.
    """
    network = TruncatedNetwork(classifier, [layer], size=classifier.accepted_size, space_to_depth=False)
    count = find_layer(classifier.layers, layer).num_channels or 0
    rows = torch.eye(count, device=network.device)
    together = rows.cumsum(0)[-1:] * torch.linspace(0.5, 1, count, device=rows.device)
    side = 4
    while (side := 2 * side) <= MAX_SIDE:
        try:
            first, second = (_gradient(network, layer, before, together, side, seed) for seed in (0, 1))
        except FAILED:
            continue  # too small
        used = [first[0].abs().amax((0, at)).nonzero().flatten() for at in (2, 1)]
        if not all(map(len, used)):
            return None
        ends = [(int(each[0]), int(each[-1]) + 1) for each in used]
        if all(start > 0 and end < side for start, end in ends):
            break
    else:
        return None
    if not torch.allclose(first, second, rtol=1e-3, atol=1e-5 * float(first.abs().max())):
        return None  # a gate
    (top, bottom), (left, right) = ends
    chunk = max(1, int(2**21 / first.numel()))
    parts = [_gradient(network, layer, before, part, side, 0) for part in torch.split(rows, chunk)]
    return torch.cat([part[..., top:bottom, left:right].cpu() for part in parts])


class Contributions(NamedTuple):
    """What the filters of a layer add to logits.

    Attributes:
        layer: of the filters.
        exact: whether the values of all filters and the bias add up to the logit of every image, because a linear head
            sees the filters' outputs behind nothing but pooling. Otherwise a value is the output of the filter times
            the gradient of the logit, summed over space.
        values: `(images, classes, filters)`, or `(images, filters)` for one class of each image.
    """

    layer: str
    exact: bool
    values: Tensor


def class_contributions(
    classifier: Classifier,
    images: Tensor,
    inputs: LayerInputs | None,
    classes: Tensor | None = None,
    *,
    batch_size: int = 32,
) -> Contributions:
    """Return what the filters of the last convolution add to the logits of images.

    Args:
        classifier: is left as it was.
        images: `(N, C, H, W)` in [0, 1].
        inputs: of the head, from `trace_inputs`; None: not known.
        classes: one of each image, `(N,)`; None: all classes.
        batch_size: of the forward passes.
    """
    if inputs is not None and all(inputs.filters):
        owners = [each[-1] for each in inputs.filters]
        layer = owners[0][0]
        if {name for name, _ in owners} == {layer} and find_layer(classifier.layers, layer).kind == "conv":
            number = torch.tensor([i for _, i in owners])
            weights = classifier.head.get_parameter("weight").detach().float().cpu()
            with observing(classifier), torch.no_grad():
                batches = torch.split(images, batch_size)
                seen = [run_model(classifier, batch, classifier.backbone) for batch in batches]
            features = torch.cat(seen).float().cpu()
            weights = weights if classes is None else weights[classes]
            products = features[:, None] * weights if classes is None else features * weights
            count = find_layer(classifier.layers, layer).num_channels or 0
            total = products.new_zeros(*products.shape[:-1], count)
            return Contributions(layer=layer, exact=True, values=total.index_add_(-1, number, products))
    layer = convolutions(classifier.layers)[-1]
    parts = [
        _gradient_products(classifier, layer, batch, None if classes is None else classes[at : at + batch_size])
        for at, batch in zip(range(0, len(images), batch_size), torch.split(images, batch_size), strict=True)
    ]
    return Contributions(layer=layer, exact=False, values=torch.cat(parts))


def _block_diagonal(rows: Tensor, groups: int) -> Tensor:
    """Return `(n, inputs of a group)` as `(n, all inputs)`; the rows of a group see the inputs of that group only."""
    whole = rows.new_zeros(groups, len(rows) // groups, groups, rows.shape[1])
    whole[range(groups), :, range(groups)] = rows.reshape(groups, -1, rows.shape[1])
    return whole.flatten(2).flatten(0, 1)


def _gradient_products(classifier: Classifier, layer: str, images: Tensor, classes: Tensor | None) -> Tensor:
    tapped = output_layer(classifier, layer)
    with observing(classifier), torch.enable_grad(), tapping(classifier, [tapped]) as outputs:
        # In a completely frozen network only the images can have gradients.
        logits = classifier(images.to(device_of(classifier)).clone().requires_grad_())
        maps = outputs[tapped]
        if classes is not None:
            wanted = [logits.gather(1, classes.to(logits.device)[:, None]).sum()]
        else:
            wanted = list(logits.sum(0))
        gradients = [torch.autograd.grad(each, maps, retain_graph=True)[0] for each in wanted]
    found = torch.stack([(maps.detach() * each).flatten(2).sum(2).float().cpu() for each in gradients], dim=1)
    return found if classes is None else found[:, 0]


class _WithoutNonlinearities(TorchFunctionMode):
    """Leaves some functions out, and replaces max pools by average pools."""

    def __init__(self, left_out: frozenset[str]) -> None:
        super().__init__()
        self.left_out = left_out

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
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

    network = copy_network(classifier.backbone.network, convert).eval()
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
    with _WithoutNonlinearities(ACTIVATION_FUNCTIONS | NORM_FUNCTIONS):
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


def _gradient(network: TruncatedNetwork, layer: str, before: str, rows: Tensor, side: int, seed: int) -> Tensor:
    """Return the gradients of weighted sums of a layer's filters at one position with respect to another's input.

    Args:
        network: ends with `layer`.
        layer: the layer of the filters.
        before: the layer whose input is replaced by random values of `side` × `side`.
        rows: the weights of each sum, `(sums, filters)`.
        side: height and width of the input in pixels.
        seed: of the values.
    """
    values = torch.Generator().manual_seed(seed)
    classifier, device = network.network, rows.device
    module = classifier.module_of(before)
    channels = int(module.get_parameter("weight").shape[1]) * getattr(module, "groups", 1)
    given = torch.randn(len(rows), channels, side, side, generator=values).to(device).requires_grad_()
    size = classifier.accepted_size
    images = torch.full((1, classifier.in_channels, size, size), 0.5, device=device)
    with observing(classifier), torch.enable_grad():
        module.register_forward_pre_hook(lambda *_: given)
        with _WithoutNonlinearities(ACTIVATION_FUNCTIONS):
            output = network(images)[layer]
        middle = output[..., output.shape[-2] // 2, output.shape[-1] // 2]
        return torch.autograd.grad((middle * rows).sum(), given)[0]
