"""Split a network at a layer into a frozen trunk and a trained tail, so that the trunk's output can be cached."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from filterscope.models.classifier import Classifier
from filterscope.models.forward_trace import FAILED
from filterscope.models.layers import find_layer
from filterscope.models.network_copy import evaluating, hooks_of


@dataclass(frozen=True, kw_only=True)
class SplitNetwork:
    """A classifier in two parts: `logits(features(images))` equals the classifier's output.

    Attributes:
        classifier: whose parameters and modules both parts share.
        layer: the split point, the last module of the trunk.
        trunk: the modules that `features` runs.
        tail: maps the features to the head's input.
    """

    classifier: Classifier
    layer: nn.Module
    trunk: tuple[nn.Module, ...]
    tail: nn.Module

    def features(self, images: Tensor) -> Tensor:
        """Return the trunk's output for images in [0, 1]; the tail is not computed."""
        if self.layer is self.classifier.backbone:
            whole: Tensor = self.layer(images)
            return whole
        handle = self.layer.register_forward_hook(_stop)
        try:
            self.classifier.backbone(images)
        except _LayerReached as reached:
            return reached.output
        finally:
            handle.remove()
        raise RuntimeError("the layer at the split point did not run")

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits for the trunk's output."""
        logits: Tensor = self.classifier.head(self.tail(features))
        return logits

    @property
    def watched(self) -> bool:
        """Whether a module of the trunk has hooks, which would miss cached images."""
        return any(any(hooks_of(module)) for part in self.trunk for module in part.modules())


def split_at(classifier: Classifier, name: str | None = None) -> SplitNetwork | None:
    """Split a classifier after a layer, or after the backbone if no name is given.

    Return None if later layers use anything but this layer's output (a skip connection, a functional op); verified by
    comparing the logits of one image.
    """
    if name is None:
        return SplitNetwork(
            classifier=classifier, layer=classifier.backbone, trunk=(classifier.backbone,), tail=nn.Identity()
        )
    layer = classifier.module_of(name)
    path = find_layer(classifier.layers, name).path
    tail = _without(classifier.backbone.network, path.removeprefix("backbone.network."))
    split = SplitNetwork(classifier=classifier, layer=layer, trunk=modules_up_to(classifier, path), tail=tail)
    return split if _is_exact(split) else None


def split_before(classifier: Classifier, name: str) -> SplitNetwork | None:
    """Split a classifier at a layer, or as late as possible before it; None if it can be split nowhere before it.

    The last exact split point is found by trying: in a residual network it is the end of a block.
    """
    names = list(classifier.layers)  # in the order of execution
    before = reversed(names[: names.index(find_layer(classifier.layers, name).name) + 1])
    return next((split for each in before if (split := split_at(classifier, each)) is not None), None)


def modules_up_to(module: nn.Module, path: str) -> tuple[nn.Module, ...]:
    """Return the modules up to and including the one at a path, the largest possible ones that do not contain it."""
    name, _, rest = path.partition(".")
    found: list[nn.Module] = []
    for key, child in module.named_children():
        if key == name:
            return (*found, *(modules_up_to(child, rest) if rest else (child,)))
        found.append(child)
    raise ValueError(f"there is no module {path!r}")


class _LayerReached(Exception):
    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output


def _stop(_module: nn.Module, _inputs: object, output: Tensor) -> None:
    raise _LayerReached(output)


def _without(network: nn.Module, path: str) -> nn.Module:
    """Return a network that shares all modules but passes its input unchanged to the module after the layer."""
    tail = copy.copy(network)
    children = dict(network.named_children())
    name, _, rest = path.partition(".")
    for key, child in network.named_children():
        children[key] = _without(child, rest) if key == name and rest else nn.Identity()
        if key == name:
            break
    tail.__dict__["_modules"] = children
    return tail


def _is_exact(split: SplitNetwork) -> bool:
    classifier, size = split.classifier, split.classifier.accepted_size
    image = torch.linspace(0, 1, classifier.in_channels * size * size, device=next(classifier.parameters()).device)
    images = image.view(1, classifier.in_channels, size, size)
    with evaluating(classifier), torch.no_grad():
        try:
            return torch.equal(split.logits(split.features(images)), classifier(images))
        except FAILED:
            return False
