"""What connects filters: how a layer weighs its inputs, which filters use another, what filters add to logits."""

from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from filterscope.analysis.filter_inputs import ACTIVATION_FUNCTIONS, Filter, LayerInputs, WithoutNonlinearities
from filterscope.analysis.health.recorder import output_layer
from filterscope.analysis.hooks import device_of, observing, run_model, tapping
from filterscope.analysis.synthesis.network import TruncatedNetwork
from filterscope.models.classifier import Classifier
from filterscope.models.forward_trace import FAILED
from filterscope.models.layers import convolutions, find_layer

MAX_SIDE = 256  # pixels of the inputs that expanded weights are looked for in


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


class User(NamedTuple):
    """A filter that takes another one as an input.

    Attributes:
        layer: of the user.
        filter: its number.
        share: of its squared weights that belongs to the input, in [0, 1].
        sign: the sum of these weights over the sum of their absolute values, in [−1, 1].
    """

    layer: str
    filter: int
    share: float
    sign: float


def filter_users(classifier: Classifier, inputs: Mapping[str, LayerInputs], *, most: int) -> dict[Filter, list[User]]:
    """Return for each filter the filters of later layers that use it most, the largest shares first.

    Args:
        classifier: is left as it was.
        inputs: from `trace_inputs`.
        most: the largest number of users of a filter.
    """
    found: dict[Filter, list[User]] = defaultdict(list)
    for user, own in inputs.items():
        if user == "head":
            continue
        shares, signs = kernel_shares(classifier, user)
        for layer in own.layers:
            channels, filters = _arrivals(own, layer)
            count = int(filters.max()) + 1
            used = shares.new_zeros(len(shares), count).index_add_(1, filters, shares[:, channels])
            sign = shares.new_zeros(len(shares), count).index_add_(1, filters, (shares * signs)[:, channels])
            best = used.topk(min(most, len(used)), dim=0)
            for i in sorted(set(filters.tolist())):
                found[layer, i] += [
                    User(user, j, float(share), float(sign[j, i] / share))
                    for share, j in zip(best.values[:, i], best.indices[:, i].tolist(), strict=True)
                    if share > 0
                ]
    return {each: sorted(users, key=lambda user: -user.share)[:most] for each, users in found.items()}


def class_weights(
    classifier: Classifier, head: LayerInputs | None, *, most: int
) -> dict[Filter, list[tuple[int, float]]]:
    """Return for each filter that a linear head sees the classes with the largest and the smallest weights for it.

    Args:
        classifier: is left as it was.
        head: the inputs of the head, from `trace_inputs`; None: not known.
        most: the largest number of either.

    Returns:
        Class and weight, the largest weights first; the mean over the head's inputs that the filter arrives in.
    """
    found: dict[Filter, list[tuple[int, float]]] = {}
    if head is None or classifier.num_classes < 2:
        return found
    for layer in head.layers:
        channels, filters = _arrivals(head, layer)
        weights = classifier.head.get_parameter("weight").detach().float().cpu()[:, channels]
        mean = weights.new_zeros(len(weights), int(filters.max()) + 1).index_add_(1, filters, weights)
        mean = mean / filters.bincount().clamp_min(1)
        ends = min(most, len(mean) // 2)
        order = mean.argsort(dim=0, descending=True)
        for i in sorted(set(filters.tolist())):
            chosen = [*order[:ends, i].tolist(), *order[len(order) - ends :, i].tolist()]
            found[layer, i] = [(c, float(mean[c, i])) for c in chosen]
    return found


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


def _arrivals(inputs: LayerInputs, layer: str) -> tuple[Tensor, Tensor]:
    """Return in which channels which filters of a layer arrive, as two lists of numbers."""
    pairs = [(c, i) for c, each in enumerate(inputs.filters) for name, i in each if name == layer]
    channels, filters = torch.tensor(pairs).T
    return channels, filters


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
        with WithoutNonlinearities(ACTIVATION_FUNCTIONS):
            output = network(images)[layer]
        middle = output[..., output.shape[-2] // 2, output.shape[-1] // 2]
        return torch.autograd.grad((middle * rows).sum(), given)[0]
