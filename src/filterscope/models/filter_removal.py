"""Cut filters out of a network with torch-pruning's dependency graph, and rebuild cut networks from their weights."""

import copy
import math
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from filterscope.errors import UserError, first_line
from filterscope.models.classifier import Classifier
from filterscope.models.layers import convolutions
from filterscope.models.network_copy import same_random_numbers


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
    with _traced(classifier, wanted, merges or {}, cut) as cutter:
        for name in convolutions(classifier.layers):
            cutter.cut_group(name)
        with torch.no_grad(), cutter.supported():
            logits = classifier(_image(classifier))
    if tuple(logits.shape) != (1, classifier.num_classes):
        raise UserError(f"{classifier.backbone.name} cannot be cut: the number of its outputs would change")
    for known in ("layers", "_accepted"):
        classifier.__dict__.pop(known, None)
    classifier.traced = None
    return cut


@contextmanager
def _refuse_unsupported(classifier: Classifier) -> Iterator[None]:
    """Turn an error of a call to torch-pruning, whose ways of not supporting a network are many, into a `UserError`."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UserError(
            f"{classifier.backbone.name} cannot be cut: torch-pruning does not support it ({first_line(error)})"
        ) from error


@dataclass(frozen=True, kw_only=True)
class Reset:
    """What was initialised again in a network.

    Attributes:
        filters: indices of the filters by layer.
        parts: the changed parts of parameters: the parameter, the dimension, and the indices in it.
    """

    filters: dict[str, list[int]]
    parts: list[tuple[nn.Parameter, int, list[int]]]


def reset_filters(classifier: Classifier, wanted: Mapping[str, Sequence[int]], *, seed: int = 0) -> Reset:
    """Give filters new random kernels in place, and weights of 0 where later layers see their outputs.

    The network then computes what it computed with these filters silenced. Left out are filters whose outputs not only
    batch norms, convolutions and Linears see, or whose layer or later layers are frozen.

    Args:
        classifier: is changed in place.
        wanted: indices of filters by layer.
        seed: of the kernels, which are drawn as by the layers' `reset_parameters`.

    Raises:
        UserError: torch-pruning is not installed or does not support the network.
    """
    filters: dict[str, list[int]] = {}
    parts: list[tuple[nn.Parameter, int, list[int]]] = []
    trained = {parameter for parameter in classifier.parameters() if parameter.requires_grad}
    cut = Cut(filters={}, merged={}, kept={})
    with _traced(classifier, wanted, {}, cut) as cutter, same_random_numbers(), torch.no_grad():
        torch.manual_seed(seed)
        for name, indices in wanted.items():
            changed = _reset_layer(cutter, name, indices, trained) if indices else []
            if changed:
                filters[name] = list(indices)
                parts += changed
    return Reset(filters=filters, parts=parts)


def _reset_layer(
    cutter: "_Cutter", name: str, filters: Sequence[int], trained: Container[nn.Parameter]
) -> list[tuple[nn.Parameter, int, list[int]]]:
    """Reset filters of a layer if that can be done, and return the changed parts of parameters."""
    if not cutter.sees_plainly(name):
        return []
    own, later = [], []
    for item in cutter.group(name, filters):
        module, indices = item.dep.target.module, list(item.idxs)
        if module is cutter.modules[name] or isinstance(module, nn.BatchNorm2d):
            own.append((module, indices))
        elif cutter.takes(item):
            later.append((module.weight, indices))
    parts = [(parameter, 0, indices) for module, indices in own for parameter in module.parameters(recurse=False)]
    parts += [(weight, 1, indices) for weight, indices in later]
    if not later or any(parameter not in trained for parameter, *_ in parts):
        return []
    for module, indices in own:
        fresh = copy.deepcopy(module)
        fresh.reset_parameters()
        for key, tensor in module.state_dict().items():
            if tensor.dim():  # not the counter of a batch norm
                tensor[indices] = fresh.state_dict()[key][indices]
    for weight, indices in later:
        weight[:, indices] = 0
    return parts


def _image(classifier: Classifier) -> Tensor:
    size = classifier.accepted_size
    return torch.zeros(1, classifier.in_channels, size, size, device=next(classifier.parameters()).device)


@contextmanager
def _traced(
    classifier: Classifier,
    wanted: Mapping[str, Sequence[int]],
    merges: Mapping[str, Mapping[int, Merge]],
    cut: Cut,
) -> Iterator["_Cutter"]:
    """Trace which weights belong together; in the block all parameters have gradients."""
    try:
        import torch_pruning as tp
    except ImportError as error:
        raise UserError('cutting filters needs torch-pruning: pip install "filterscope[prune]"') from error
    trained = {name for name, parameter in classifier.named_parameters() if parameter.requires_grad}
    modes = {module: module.training for module in classifier.modules()}
    supported = partial(_refuse_unsupported, classifier)
    try:
        classifier.eval().requires_grad_(True)  # torch-pruning reads the graph from the functions of the gradients
        with warnings.catch_warnings(action="ignore"), torch.enable_grad():
            with supported():
                graph = tp.DependencyGraph().build_dependency(classifier, example_inputs=_image(classifier))
            yield _Cutter(tp, graph, classifier, wanted, merges, cut, supported)
    finally:
        for module, training in modes.items():
            module.training = training
        for name, parameter in classifier.named_parameters():
            parameter.requires_grad_(name in trained)


class _Cutter:
    """Cuts the layers of a network one coupled group after the other, so that all indices are those before the cut."""

    def __init__(
        self,
        tp: Any,
        graph: Any,
        classifier: Classifier,
        wanted: Mapping[str, Sequence[int]],
        merges: Mapping[str, Mapping[int, Merge]],
        cut: Cut,
        supported: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.tp, self.graph, self.merges, self.cut, self.supported = tp, graph, merges, cut, supported
        self.modules = {name: cast(nn.Conv2d, classifier.module_of(name)) for name in convolutions(classifier.layers)}
        self.names = {module: name for name, module in self.modules.items()}
        self.wanted = {(name, i) for name, indices in wanted.items() for i in indices}
        self.done: set[str] = set()

    def group(self, name: str, filters: Sequence[int]) -> Any:
        """Return torch-pruning's group of everything that goes with some filters of a layer."""
        with self.supported():
            return self.graph.get_pruning_group(
                self.modules[name], self.tp.prune_conv_out_channels, idxs=[int(i) for i in filters]
            )

    def cut_group(self, name: str) -> None:
        """Remove the wanted filters of a layer and of all layers that are coupled with it."""
        if name in self.done:
            return
        count = self.modules[name].out_channels
        group = self.group(name, range(count))
        coupled = self._coupled(name, group)
        self.done |= {layer for each in coupled for layer, _ in each}
        convolved = [item.dep.target.module for item in group if isinstance(item.dep.target.module, nn.Conv2d)]
        grouped = any(1 < conv.groups < conv.in_channels for conv in convolved)
        merges = self.merges.get(name, {})
        mergeable = all(len(each) == 1 for each in coupled) and all(map(self._can_merge, group))
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
        group = self.group(name, chosen)
        with self.supported():
            group.prune()

    def sees_plainly(self, name: str) -> bool:
        """Return whether convolutions and Linears see a layer's filters, each by itself, behind batch norms at most."""
        group = self.group(name, range(self.modules[name].out_channels))
        alone = all(len(each) == 1 for each in self._coupled(name, group)) and all(map(self._can_merge, group))
        kinds = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)
        modules = [item.dep.target.module for item in group]
        return alone and all(isinstance(each, kinds) for each in modules if next(each.parameters(), None) is not None)

    def _coupled(self, name: str, group: Any) -> list[set[tuple[str, int]]]:
        """Return for each filter of a layer itself and the filters of other layers that go only with it."""
        coupled = [{(name, i)} for i in range(self.modules[name].out_channels)]
        for item in group:
            layer = self.names.get(item.dep.target.module)
            if layer and self.graph.is_out_channel_pruning_fn(item.dep.handler):
                for root, i in zip(item.root_idxs, item.idxs, strict=False):
                    coupled[root].add((layer, i))
        return coupled

    def _keep(self, filters: Iterable[tuple[str, int]], reason: str) -> None:
        for layer, i in filters:
            if (layer, i) in self.wanted:
                self.cut.kept[layer][i] = reason

    def _can_merge(self, item: Any) -> bool:
        """Return whether the layer in an item of a group only passes outputs on, or weighs them one by one."""
        layer = item.dep.target.module
        plain = isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
        return plain or not self.takes(item)

    def takes(self, item: Any) -> bool:
        """Return whether the layer in an item takes the filters as its input; a norm's input is its output too."""
        function = item.dep.handler
        is_input: bool = self.graph.is_in_channel_pruning_fn(function)
        return is_input and not self.graph.is_out_channel_pruning_fn(function)

    def _merge(self, name: str, copy: int, merge: Merge) -> None:
        """Add the weights with which later layers see a copy to those with which they see the original."""
        for item, original in zip(self.group(name, [copy]), self.group(name, [merge.into]), strict=True):
            layer = item.dep.target.module
            if self.takes(item) and isinstance(layer, nn.Conv2d | nn.Linear):
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
