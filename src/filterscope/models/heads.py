"""Heads: put a new classification layer on a backbone, or keep or remove its own."""

from torch import nn

from filterscope.errors import UserError
from filterscope.models.backbone import Backbone
from filterscope.models.classifier import Classifier
from filterscope.models.forward_trace import output_shapes
from filterscope.models.layers import last_layer
from filterscope.models.weights import abbreviate
from filterscope.registry import register


@register("head", "replace")
@register("head")
def replace(backbone: Backbone, *, num_classes: int) -> Classifier:
    """Replace the network's last Linear with a new one; a network without a Linear (SqueezeNet) gets `linear`."""
    path, last = last_layer(backbone.network)
    if isinstance(last, nn.Conv2d):
        return linear(backbone, num_classes=num_classes)
    head = nn.Linear(last.in_features, num_classes, bias=last.bias is not None)
    return _split(backbone, path, head, num_classes, published=last)


@register("head", "append")
@register("head")
def append(backbone: Backbone, *, num_classes: int) -> Classifier:
    """Put a new Linear on the published logits: `Linear(1000, num_classes)` for ImageNet weights.

    Raises:
        UserError: the logits depend on layers that the weights file does not hold.
    """
    _refuse_untrained(backbone, "append")
    head = nn.Linear(backbone.num_classes, num_classes)
    return Classifier(backbone, head, num_classes=num_classes, published=nn.Identity())


@register("head", "linear")
@register("head")
def linear(backbone: Backbone, *, num_classes: int) -> Classifier:
    """Put one new Linear on the globally pooled convolutional features; needs no fully connected weights.

    If the network's own classifier is one Linear (ResNet, DenseNet, …), that one is replaced.

    Raises:
        UserError: the end of the network's features cannot be found.
    """
    if _has_one_linear(backbone.network):
        return replace(backbone, num_classes=num_classes)
    return Classifier(backbone, nn.Linear(_pool_features(backbone), num_classes), num_classes=num_classes)


@register("head", "keep")
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
    _set(backbone.network, path, nn.Identity())
    path_there = path if backbone.published_layers else None
    return Classifier(backbone, head, num_classes=num_classes, head_path=path_there, published=published)


def _has_one_linear(network: nn.Module) -> bool:
    parts = [part for name, part in network.named_children() if name in ("classifier", "fc", "head", "heads")]
    return sum(isinstance(module, nn.Linear) for part in parts for module in part.modules()) == 1


def _pool_features(backbone: Backbone) -> int:
    """End the network after its convolutional features, pooled globally, and return their number."""
    network = backbone.network
    if callable(reset := getattr(network, "reset_classifier", None)):  # timm's networks
        reset(0)
    elif isinstance(network, nn.Sequential):
        names = list(dict(network.named_children()))
        kinds = [type(module) for module in network.children()]
        for name in names[kinds.index(nn.Flatten) if nn.Flatten in kinds else len(names) :]:
            delattr(network, name)
        network.add_module("avgpool", nn.AdaptiveAvgPool2d(1))
        network.add_module("flatten", nn.Flatten())
    elif hasattr(network, "avgpool") and hasattr(network, "classifier"):
        network.avgpool = nn.AdaptiveAvgPool2d(1)
        network.classifier = nn.Identity()
    elif hasattr(network, "classifier"):  # pools in its classifier: SqueezeNet, MaxViT
        network.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    else:
        raise UserError(f"cannot find where the features of {backbone.name} end; use head=replace")
    shapes = output_shapes(network, in_channels=backbone.in_channels, image_size=backbone.image_size)
    if shapes is None:
        raise ValueError(f"{backbone.name} does not accept images of its own size, {backbone.image_size}")
    return shapes[""][0]


def _set(network: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, module)


def _refuse_untrained(backbone: Backbone, head: str) -> None:
    if backbone.missing and not backbone.allow_random:
        raise UserError(
            f"head={head} keeps layers that the weights file does not hold ({abbreviate(backbone.missing)}); "
            "use head=linear, give complete weights, or say model.allow_random=true"
        )
