"""Cut filters out of a network with torch-pruning's dependency graph, and rebuild cut networks from their weights."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.filter_graph import FilterGraph, blank_image, filter_graph


@dataclass(frozen=True, kw_only=True)
class Merge:
    """A filter whose outputs are `factor` times those of filter `into` of the same layer."""

    into: int
    factor: float


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What was cut out of a network.

    Attributes:
        filters: indices of the removed filters by layer, as they were before the cut.
        merged: the removed filters whose outputs were added to another filter's, by layer.
        kept: the reason for each wanted filter that was not removed, by layer and index.
    """

    filters: dict[str, list[int]]
    merged: dict[str, list[int]]
    kept: dict[str, dict[int, str]]


def cut_filters(
    classifier: Classifier,
    wanted: Mapping[str, Sequence[int]],
    *,
    merges: Mapping[str, Mapping[int, Merge]] | None = None,
) -> Cut:
    """Remove filters from a classifier in place, with all weights of later layers that belong to them.

    Filters that are added to or multiplied with those of other layers can only be removed together with them; they are
    removed if all of them are wanted. At least one filter of every layer stays. A removed filter's output counts as 0.

    Args:
        classifier: is changed in place.
        wanted: indices of the filters to remove, by layer.
        merges: of these, the filters whose outputs later layers take from another filter, by layer and index.

    Raises:
        UserError: torch-pruning is not installed or does not support the network.
    """
    cut = Cut(filters={}, merged={}, kept={name: {} for name in wanted})
    with filter_graph(classifier, "cut") as graph:
        cutter = _Cutter(graph, wanted, merges or {}, cut)
        for name in graph.modules:
            cutter.cut_group(name)
        with torch.no_grad(), graph.supported():
            logits = classifier(blank_image(classifier))
    if tuple(logits.shape) != (1, classifier.num_classes):
        raise UserError(f"{classifier.backbone.name} cannot be cut: the number of its outputs would change")
    for known in ("layers", "_accepted"):
        classifier.__dict__.pop(known, None)
    classifier.traced = None
    return cut


class _Cutter:
    """Cuts the layers of a network one coupled group after the other, so that all indices are those before the cut."""

    def __init__(
        self,
        graph: FilterGraph,
        wanted: Mapping[str, Sequence[int]],
        merges: Mapping[str, Mapping[int, Merge]],
        cut: Cut,
    ) -> None:
        self.graph, self.merges, self.cut = graph, merges, cut
        self.wanted = {(name, i) for name, indices in wanted.items() for i in indices}
        self.done: set[str] = set()

    def cut_group(self, name: str) -> None:
        """Remove the wanted filters of a layer and of all layers that are coupled with it."""
        if name in self.done:
            return
        count = self.graph.modules[name].out_channels
        group = self.graph.group(name, range(count))
        coupled = self.graph.coupled(name, group)
        self.done |= {layer for each in coupled for layer, _ in each}
        convolved = [item.dep.target.module for item in group if isinstance(item.dep.target.module, nn.Conv2d)]
        grouped = any(1 < conv.groups < conv.in_channels for conv in convolved)
        merges = self.merges.get(name, {})
        mergeable = all(len(each) == 1 for each in coupled) and all(map(self.graph.keeps_apart, group))
        chosen = []
        for i, each in enumerate(coupled):
            needed = sorted({layer for layer, j in each if (layer, j) not in self.wanted})
            if (name, i) not in self.wanted:
                reason = f"its output goes with that of {name}, which is needed"
            elif grouped:
                reason = "the groups of a grouped convolution must stay equal"
            elif needed:
                reason = f"its output goes with that of {', '.join(needed)}, which is needed"
            elif i in merges and not mergeable:
                reason = "a duplicate that cannot be merged: not only convolutions and Linears see its output"
            else:
                chosen.append(i)
                continue
            self._keep(each, reason)
        if len(chosen) == count:
            self._keep(coupled[chosen.pop()], "the last filter of its layer")
        for i in chosen:
            for layer, j in coupled[i]:
                self.cut.filters.setdefault(layer, []).append(j)
        if not chosen:
            return
        for i in chosen:
            if i in merges:
                self._merge(name, i, merges[i])
                self.cut.merged.setdefault(name, []).append(i)
        group = self.graph.group(name, chosen)
        with self.graph.supported():
            group.prune()

    def _keep(self, filters: Iterable[tuple[str, int]], reason: str) -> None:
        for layer, i in filters:
            if (layer, i) in self.wanted:
                self.cut.kept[layer][i] = reason

    def _merge(self, name: str, copy: int, merge: Merge) -> None:
        """Add the weights with which later layers see a copy to those with which they see the original."""
        for item, original in zip(self.graph.group(name, [copy]), self.graph.group(name, [merge.into]), strict=True):
            layer = item.dep.target.module
            if self.graph.takes(item) and isinstance(layer, nn.Conv2d | nn.Linear):
                with torch.no_grad():
                    layer.weight[:, original.idxs] += merge.factor * layer.weight[:, item.idxs]


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
