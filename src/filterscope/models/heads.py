"""Heads: put a new classification layer on a backbone, or keep or remove its own."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from filterscope.errors import UserError
from filterscope.models.backbone import Backbone
from filterscope.models.classifier import Classifier
from filterscope.models.forward_trace import calls_without_values
from filterscope.models.layers import last_layer
from filterscope.models.weights import abbreviate
from filterscope.registry import register

Pool = Literal["mean", "products"]


@register("head")
def replace(backbone: Backbone, *, num_classes: int) -> Classifier:
    """Replace the network's last Linear with a new one; a network without a Linear (SqueezeNet) gets `linear`."""
    path, last = last_layer(backbone.network)
    if isinstance(last, nn.Conv2d):
        return linear(backbone, num_classes=num_classes)
    head = nn.Linear(last.in_features, num_classes, bias=last.bias is not None)
    return _split(backbone, path, head, num_classes, published=last)


@register("head")
def append(backbone: Backbone, *, num_classes: int) -> Classifier:
    """Put a new Linear on the published logits: `Linear(1000, num_classes)` for ImageNet weights.

    Raises:
        UserError: the logits depend on layers that the weights file does not hold.
    """
    _refuse_untrained(backbone, "append")
    head = nn.Linear(backbone.num_classes, num_classes)
    return Classifier(backbone, head, num_classes=num_classes, published=nn.Identity())


@register("head")
def linear(backbone: Backbone, *, num_classes: int, pool: Pool = "mean") -> Classifier:
    """Put one new Linear on the pooled convolutional features; needs no fully connected weights.

    If the network's own classifier is one Linear (ResNet, DenseNet, …), that one is replaced.

    Args:
        backbone: the network; it is changed in place.
        num_classes: of the data.
        pool: `mean` averages each feature map. `products` averages the products of each two maps and takes their square
            roots, normalised over each image (Lin et al. 2015): C (C + 1) / 2 features from C maps, which tell classes
            apart that differ in details; only for networks that end in several fully connected layers (AlexNet, VGG).

    Raises:
        UserError: the end of the network's features cannot be found, or its pooling cannot be changed.
    """
    if _has_one_linear(backbone.network):
        _refuse_products(backbone, pool)
        return replace(backbone, num_classes=num_classes)
    return Classifier(backbone, nn.Linear(_pool_features(backbone, pool), num_classes), num_classes=num_classes)


class ProductPool(nn.Module):
    """Averages the products of each two feature maps: `(N, C, H, W)` → `(N, C (C + 1) / 2, 1, 1)`.

    Then it takes square roots, which lets strong features not outweigh all others, and normalises them over each image.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Return the square roots of the averages; they are 0 on average over an image, with variance 1."""
        values = maps.flatten(2)
        means = values @ values.transpose(1, 2) / values.shape[2]
        first, second = torch.triu_indices(maps.shape[1], maps.shape[1], device=maps.device)
        roots = (means[:, first, second].float().clamp_min(0) + 1e-6).sqrt()
        return F.layer_norm(roots, roots.shape[1:]).to(maps.dtype)[:, :, None, None]


@register("head")
def keep(backbone: Backbone, *, num_classes: int | None = None) -> Classifier:
    """Keep the network's own last layer; the data must have as many classes.

    Raises:
        UserError: the data has another number of classes, or the weights file does not hold all layers.
    """
    _refuse_untrained(backbone, "keep")
    own = backbone.num_classes
    if num_classes not in (None, own):
        raise UserError(
            f"head=keep outputs the {own} classes of {backbone.name}, the data has {num_classes}; "
            "use head=replace, append or linear"
        )
    path, last = last_layer(backbone.network)
    if isinstance(last, nn.Conv2d):
        return Classifier(backbone, nn.Identity(), num_classes=own, head_path="", published=nn.Identity())
    return _split(backbone, path, last, own, published=last)


def trunk(backbone: Backbone) -> Classifier:
    """Keep the convolutional part only; the output is its globally pooled features, not classes."""
    classifier = linear(backbone, num_classes=1)
    width = classifier.get_parameter("head.weight").shape[1]
    return Classifier(classifier.backbone, nn.Identity(), num_classes=width)


def _split(backbone: Backbone, path: str, head: nn.Linear, num_classes: int, *, published: nn.Linear) -> Classifier:
    parent, _, name = path.rpartition(".")
    setattr(backbone.network.get_submodule(parent), name, nn.Identity())
    path_there = path if backbone.published_layers else None
    return Classifier(backbone, head, num_classes=num_classes, head_path=path_there, published=published)


def _has_one_linear(network: nn.Module) -> bool:
    parts = [part for name, part in network.named_children() if name in ("classifier", "fc", "head", "heads")]
    return sum(isinstance(module, nn.Linear) for part in parts for module in part.modules()) == 1


def _refuse_products(backbone: Backbone, pool: Pool) -> None:
    if pool == "products":
        raise UserError(f"head.pool=products is possible for AlexNet and VGG only; leave it out for {backbone.name}")


def _pool_features(backbone: Backbone, pool: Pool) -> int:
    """End the network after its convolutional features, pooled, and return their number."""
    network = backbone.network
    pooling = ProductPool() if pool == "products" else nn.AdaptiveAvgPool2d(1)
    if callable(reset := getattr(network, "reset_classifier", None)):  # timm's networks
        _refuse_products(backbone, pool)
        reset(0)
    elif isinstance(network, nn.Sequential):
        names = list(dict(network.named_children()))
        kinds = [type(module) for module in network.children()]
        for name in names[kinds.index(nn.Flatten) if nn.Flatten in kinds else len(names) :]:
            delattr(network, name)
        network.add_module("avgpool", pooling)
        network.add_module("flatten", nn.Flatten())
    elif hasattr(network, "avgpool") and hasattr(network, "classifier"):
        network.avgpool = pooling
        network.classifier = nn.Identity()
    elif hasattr(network, "classifier"):  # pools in its classifier: SqueezeNet, MaxViT
        _refuse_products(backbone, pool)
        network.classifier = nn.Sequential(pooling, nn.Flatten())
    else:
        raise UserError(f"cannot find where the features of {backbone.name} end; use head=replace")
    calls = calls_without_values(network, in_channels=backbone.in_channels, image_size=backbone.image_size)
    if calls is None:
        raise ValueError(f"{backbone.name} does not accept images of its own size, {backbone.image_size}")
    return calls[-1].shape[0]  # the network itself ends last


def _refuse_untrained(backbone: Backbone, head: str) -> None:
    if backbone.missing and not backbone.allow_random:
        raise UserError(
            f"head={head} keeps layers that the weights file does not hold ({abbreviate(backbone.missing)}); "
            "use head=linear, give complete weights, or say model.allow_random=true"
        )
