"""A network in two halves at a layer: what lies below it and rests, and what is trained on what that puts out."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from filterscope.models.classifier import Classifier
from filterscope.models.layers import find_layer


@dataclass(frozen=True, kw_only=True)
class SplitNetwork:
    """`logits(features(images))` is what the classifier makes of the images; parameters and modules are its own.

    `below` are the modules that `features` runs, `above` makes what the head takes.
    """

    classifier: Classifier
    layer: nn.Module
    trunk: tuple[nn.Module, ...]
    tail: nn.Module

    def features(self, images: Tensor) -> Tensor:
        """Return what the lower half makes of images in [0, 1]; nothing above it is computed."""
        if self.layer is self.classifier.backbone:
            whole: Tensor = self.layer(images)
            return whole
        handle = self.layer.register_forward_hook(_stop)
        try:
            self.classifier.backbone(images)
        except _Reached as reached:
            return reached.output
        finally:
            handle.remove()
        raise RuntimeError("the layer at which the network is halved did not run")

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits that belong to features."""
        logits: Tensor = self.classifier.head(self.tail(features))
        return logits

    @property
    def watched(self) -> bool:
        """Whether anybody listens to the modules of the lower half."""
        return any(module._forward_hooks for part in self.trunk for module in part.modules())


def split_at(classifier: Classifier, name: str | None = None) -> SplitNetwork | None:
    """Halve a classifier behind a layer, or behind the backbone for None.

    None where that layer's output is not all that the layers behind it see (an untrodden way around it, a function
    that is no module): that is tried out on an image.
    """
    if name is None:
        return SplitNetwork(
            classifier=classifier, layer=classifier.backbone, trunk=(classifier.backbone,), tail=nn.Identity()
        )
    layer = classifier.module_of(name)
    path = find_layer(classifier.layers, name).path
    tail = _without(classifier.backbone.network, path.removeprefix("backbone.network."))
    split = SplitNetwork(classifier=classifier, layer=layer, trunk=modules_up_to(classifier, path), tail=tail)
    return split if _fits(split) else None


def modules_up_to(module: nn.Module, path: str) -> tuple[nn.Module, ...]:
    """Return the modules that come before the one at a path, and that one; the outermost ones that do not hold it."""
    name, _, rest = path.partition(".")
    found: list[nn.Module] = []
    for key, child in module.named_children():
        if key == name:
            return (*found, *(modules_up_to(child, rest) if rest else (child,)))
        found.append(child)
    raise ValueError(f"there is no module {path!r}")


class _Reached(Exception):
    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output


def _stop(_module: nn.Module, _inputs: object, output: Tensor) -> None:
    raise _Reached(output)


def _without(network: nn.Module, path: str) -> nn.Module:
    """Return a network of the same modules that hands its input on up to behind the layer."""
    twin = copy.copy(network)
    children = dict(network.named_children())
    name, _, rest = path.partition(".")
    for key, child in network.named_children():
        children[key] = _without(child, rest) if key == name and rest else nn.Identity()
        if key == name:
            break
    twin.__dict__["_modules"] = children
    return twin


def _fits(halves: SplitNetwork) -> bool:
    classifier = halves.classifier
    size = classifier.image_size or classifier.backbone.image_size
    flags = {module: module.training for module in classifier.modules()}
    parameter = next(classifier.parameters())
    image = torch.linspace(0, 1, classifier.in_channels * size * size, device=parameter.device)
    try:
        classifier.eval()
        with torch.no_grad():
            images = image.view(1, classifier.in_channels, size, size)
            return torch.equal(halves.logits(halves.features(images)), classifier(images))
    except RuntimeError:
        return False
    finally:
        for module, training in flags.items():
            module.training = training
