"""Trace with torch-pruning which weights of a network belong to which filters."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from filterscope.errors import UserError, first_line
from filterscope.models.classifier import Classifier
from filterscope.models.input_fit import is_fittable
from filterscope.models.layers import convolutions


class FilterGraph:
    """Which weights of a classifier belong to which filters.

    They come in torch-pruning's groups. An item of a group is a module (`item.dep.target.module`), what depends on the
    filters in it (`item.dep.handler`: its inputs or its outputs), and the indices of these channels (`item.idxs`).

    Args:
        classifier: is run once.
        task: what is going to happen to filters, for messages: `cut` or `reset`.

    Raises:
        UserError: torch-pruning is not installed or does not support the network.
    """

    def __init__(self, classifier: Classifier, task: str) -> None:
        try:
            import torch_pruning as tp
        except ImportError as error:
            raise UserError(f'filters are {task} with torch-pruning: pip install "filterscope[prune]"') from error
        self.tp, self.network, self.task = tp, classifier.backbone.name, task
        self.modules = {name: cast(nn.Conv2d, classifier.module_of(name)) for name in convolutions(classifier.layers)}
        self.names = {module: name for name, module in self.modules.items()}
        with self.supported():
            self.graph = tp.DependencyGraph().build_dependency(classifier, example_inputs=(blank_image(classifier),))

    @contextmanager
    def supported(self) -> Iterator[None]:
        """Turn any error of torch-pruning, which refuses networks in many ways, into a `UserError`."""
        try:
            yield
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise UserError(
                f"filters of {self.network} cannot be {self.task}: torch-pruning does not support it "
                f"({first_line(error)})"
            ) from error

    def group(self, name: str, filters: Sequence[int]) -> Any:
        """Return torch-pruning's group of everything that belongs to some filters of a layer."""
        with self.supported():
            return self.graph.get_pruning_group(
                self.modules[name], self.tp.prune_conv_out_channels, idxs=[int(i) for i in filters]
            )

    def coupled(self, name: str, group: Any) -> list[set[tuple[str, int]]]:
        """Return for each filter of a layer itself and the filters of other layers that can only be removed with it.

        Args:
            name: of the layer.
            group: of all filters of the layer.
        """
        coupled = [{(name, i)} for i in range(self.modules[name].out_channels)]
        for item in group:
            layer = self.names.get(item.dep.target.module)
            if layer and self.graph.is_out_channel_pruning_fn(item.dep.handler):
                for root, i in zip(item.root_idxs, item.idxs, strict=False):
                    coupled[root].add((layer, i))
        return coupled

    def takes(self, item: Any) -> bool:
        """Return whether the module of an item takes the filters as its input; a norm's input is its output too."""
        function = item.dep.handler
        is_input: bool = self.graph.is_in_channel_pruning_fn(function)
        return is_input and not self.graph.is_out_channel_pruning_fn(function)

    def keeps_apart(self, item: Any) -> bool:
        """Return whether the module of an item passes the filters' outputs on, or has a weight for each of them."""
        return is_fittable(item.dep.target.module) or not self.takes(item)


@contextmanager
def filter_graph(classifier: Classifier, task: str) -> Iterator[FilterGraph]:
    """Trace a classifier; in the block it is in evaluation mode, and all its parameters require gradients."""
    trained = {name for name, parameter in classifier.named_parameters() if parameter.requires_grad}
    modes = {module: module.training for module in classifier.modules()}
    try:
        classifier.eval().requires_grad_(True)  # torch-pruning reads the graph from the functions of the gradients
        with warnings.catch_warnings(action="ignore"), torch.enable_grad():
            yield FilterGraph(classifier, task)
    finally:
        for module, training in modes.items():
            module.training = training
        for name, parameter in classifier.named_parameters():
            parameter.requires_grad_(name in trained)


def blank_image(classifier: Classifier) -> Tensor:
    """Return an image that the classifier accepts, all zeros."""
    size = classifier.accepted_size
    return torch.zeros(1, classifier.in_channels, size, size, device=next(classifier.parameters()).device)
