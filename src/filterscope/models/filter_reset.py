"""Give filters new random weights without a change of what the rest of the network computes."""

import copy
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from filterscope.models.classifier import Classifier
from filterscope.models.filter_graph import FilterGraph, filter_graph
from filterscope.models.network_copy import same_random_numbers

Parts = list[tuple[nn.Parameter, int, list[int]]]


@dataclass(frozen=True, kw_only=True)
class Reset:
    """Which filters were reset.

    Attributes:
        filters: indices of the filters by layer.
        parts: the changed parts of parameters: the parameter, the dimension, and the indices in it.
    """

    filters: dict[str, list[int]]
    parts: Parts


def reset_filters(classifier: Classifier, wanted: Mapping[str, Sequence[int]], *, seed: int = 0) -> Reset:
    """Give filters new random kernels in place, and weights of 0 in the layers that take their outputs.

    The network then computes what it computed with these filters silenced. A filter is left as it is if anything but
    batch norms, convolutions and Linears takes its output, or if its layer or one that takes its output is frozen.

    Args:
        classifier: is changed in place.
        wanted: indices of filters by layer.
        seed: of the kernels, which are drawn as by the layers' `reset_parameters`.

    Raises:
        UserError: torch-pruning is not installed or does not support the network.
    """
    filters: dict[str, list[int]] = {}
    parts: Parts = []
    trained = {parameter for parameter in classifier.parameters() if parameter.requires_grad}
    with filter_graph(classifier, "reset") as graph, same_random_numbers(), torch.no_grad():
        torch.manual_seed(seed)
        for name, indices in wanted.items():
            changed = _reset_layer(graph, name, indices, trained) if indices and _is_resettable(graph, name) else []
            if changed:
                filters[name] = list(indices)
                parts += changed
    return Reset(filters=filters, parts=parts)


def _is_resettable(graph: FilterGraph, name: str) -> bool:
    """Return whether only convolutions and Linears take a layer's filters, behind batch norms at most."""
    group = graph.group(name, range(graph.modules[name].out_channels))
    weighted = [item.dep.target.module for item in group if next(item.dep.target.module.parameters(), None) is not None]
    return (
        all(len(each) == 1 for each in graph.coupled(name, group))
        and all(map(graph.keeps_apart, group))
        and all(isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d) for module in weighted)
    )


def _reset_layer(graph: FilterGraph, name: str, filters: Sequence[int], trained: Container[nn.Parameter]) -> Parts:
    """Reset filters of a layer, and return the changed parts of parameters; none if one of them is frozen."""
    own, later = [], []
    for item in graph.group(name, filters):
        module, indices = item.dep.target.module, list(item.idxs)
        if module is graph.modules[name] or isinstance(module, nn.BatchNorm2d):
            own.append((module, indices))
        elif graph.takes(item):
            later.append((module.weight, indices))
    parts = [(parameter, 0, indices) for module, indices in own for parameter in module.parameters(recurse=False)]
    parts += [(weight, 1, indices) for weight, indices in later]
    if not later or any(parameter not in trained for parameter, *_ in parts):
        return []
    for module, indices in own:
        fresh = copy.deepcopy(module)
        fresh.reset_parameters()
        for tensor, new in zip(module.state_dict().values(), fresh.state_dict().values(), strict=True):
            if tensor.dim():  # not the counter of a batch norm
                tensor[indices] = new[indices]
    for weight, indices in later:
        weight[:, indices] = 0
    return parts
