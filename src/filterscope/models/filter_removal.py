"""Cut filters out of a network with torch-pruning's dependency graph, and rebuild cut networks from their weights."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.filter_graph import FilterGraph, blank_image, filter_graph
from filterscope.models.input_fit import Consumer, fitted_weights, input_products


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What was cut out of a network.

    Attributes:
        filters: indices of the removed filters by layer, as they were before the cut.
        kept: the reason for each wanted filter that was not removed, by layer and index.
    """

    filters: dict[str, list[int]]
    kept: dict[str, dict[int, str]]


def cut_filters(classifier: Classifier, wanted: Mapping[str, Sequence[int]], *, images: Tensor | None = None) -> Cut:
    """Remove filters from a classifier in place, with all weights of later layers that belong to them.

    Filters that are added to or multiplied with those of other layers can only be removed together with them; they are
    removed if all of them are wanted. At least one filter of every layer stays.

    Args:
        classifier: is changed in place.
        wanted: indices of the filters to remove, by layer.
        images: `(N, C, H, W)` in [0, 1], on which convolutions and Linears that lose inputs are fitted: they get the
            linear combination of the remaining inputs that is nearest to each removed one (least squares, as in He et
            al. 2017). None: the outputs of removed filters count as 0.

    Raises:
        UserError: torch-pruning is not installed or does not support the network.
    """
    cut = Cut(filters={}, kept={name: {} for name in wanted})
    with filter_graph(classifier, "cut") as graph:
        cutter = _Cutter(graph, wanted, cut)
        for name in graph.modules:
            cutter.choose(name)
        if images is not None:
            _fit_inputs(classifier, cutter.lost_inputs(), images)
        for name, filters in cutter.chosen.items():
            group = graph.group(name, filters)
            with graph.supported():
                group.prune()
        with torch.no_grad(), graph.supported():
            logits = classifier(blank_image(classifier))
    if tuple(logits.shape) != (1, classifier.num_classes):
        raise UserError(f"{classifier.backbone.name} cannot be cut: the number of its outputs would change")
    for known in ("layers", "_accepted"):
        classifier.__dict__.pop(known, None)
    classifier.traced, classifier.backbone.constructor = None, ""
    return cut


class _Cutter:
    """Chooses what is cut out of a network, one group of coupled layers after the other.

    Attributes:
        chosen: the filters to remove by layer, one layer for each group.
    """

    def __init__(self, graph: FilterGraph, wanted: Mapping[str, Sequence[int]], cut: Cut) -> None:
        self.graph, self.cut = graph, cut
        self.wanted = {(name, i) for name, indices in wanted.items() for i in indices}
        self.done: set[str] = set()
        self.chosen: dict[str, list[int]] = {}

    def choose(self, name: str) -> None:
        """Choose among the wanted filters of a layer and of all layers that are coupled with it."""
        if name in self.done:
            return
        count = self.graph.modules[name].out_channels
        group = self.graph.group(name, range(count))
        coupled = self.graph.coupled(name, group)
        self.done |= {layer for each in coupled for layer, _ in each}
        convolved = [item.dep.target.module for item in group if isinstance(item.dep.target.module, nn.Conv2d)]
        grouped = any(1 < conv.groups < conv.in_channels for conv in convolved)
        chosen = []
        for i, each in enumerate(coupled):
            needed = sorted({layer for layer, j in each if (layer, j) not in self.wanted})
            if (name, i) not in self.wanted:
                reason = f"its output goes with that of {name}, which is needed"
            elif grouped:
                reason = "the groups of a grouped convolution must stay equal"
            elif needed:
                reason = f"its output goes with that of {', '.join(needed)}, which is needed"
            else:
                chosen.append(i)
                continue
            self._keep(each, reason)
        if len(chosen) == count:
            self._keep(coupled[chosen.pop()], "the last filter of its layer")
        for i in chosen:
            for layer, j in coupled[i]:
                self.cut.filters.setdefault(layer, []).append(j)
        if chosen:
            self.chosen[name] = chosen

    def lost_inputs(self) -> dict[Consumer, set[int]]:
        """Return the input channels that plain convolutions and Linears lose."""
        lost: dict[Consumer, set[int]] = {}
        for name, filters in self.chosen.items():
            for item in self.graph.group(name, filters):
                if self.graph.takes(item) and self.graph.keeps_apart(item):
                    size = len(item.idxs) // len(filters)
                    channels = lost.setdefault((item.dep.target.module, size), set())
                    channels.update(i // size for i in item.idxs)
        return lost

    def _keep(self, filters: Iterable[tuple[str, int]], reason: str) -> None:
        for layer, i in filters:
            if (layer, i) in self.wanted:
                self.cut.kept[layer][i] = reason


def _fit_inputs(classifier: Classifier, lost: Mapping[Consumer, set[int]], images: Tensor) -> None:
    """Let modules compute from the inputs that they keep what is nearest to what they computed from all."""
    device = next(classifier.parameters()).device
    products = input_products(lambda batch: classifier(batch.to(device)), lost, images)
    with torch.no_grad():
        for consumer, channels in lost.items():
            for name, tensor in fitted_weights(consumer, products[consumer], channels).items():
                consumer[0].get_parameter(name).copy_(tensor)


def fit_to_weights(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give the modules of a network the sizes of named weights: those of a cut network.

    Only tensors of the same number of dimensions are fitted; new ones have no values, on the device of the old ones.
    """
    for path, module in network.named_modules():
        own = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
        for name, tensor in own.items():
            found = tensors.get(f"{path}.{name}" if path else name)
            if isinstance(found, Tensor) and found.shape != tensor.shape and found.dim() == tensor.dim():
                empty = torch.empty(found.shape, dtype=tensor.dtype, device=tensor.device)
                is_parameter = isinstance(tensor, nn.Parameter)
                setattr(module, name, nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty)
                _fit_attributes(module)


def _fit_attributes(module: nn.Module) -> None:
    """Set the numbers of channels that a module knows to those of its weights."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return
    if isinstance(module, nn.Conv2d):
        if module.groups == module.in_channels > 1:
            module.groups = len(weight) // max(1, module.out_channels // module.in_channels)
        module.out_channels, module.in_channels = len(weight), weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d | nn.InstanceNorm2d):
        module.num_features = len(weight)
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(weight.shape)
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = len(weight)


def multiply_adds(classifier: Classifier) -> int:
    """Return the multiply-adds of all convolutions and Linears for one image."""
    shapes, total = classifier.output_shapes(classifier.accepted_size), 0
    for path, module in classifier.named_modules():
        if path in shapes and isinstance(module, nn.Conv2d | nn.Linear):
            positions = shapes[path][1:] if isinstance(module, nn.Conv2d) else shapes[path][:-1]
            total += module.weight.numel() * math.prod(positions)
    return total
