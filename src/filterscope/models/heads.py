"""The four ways to put a head for the data's classes on a published network."""

from torch import nn

from filterscope.errors import UserError
from filterscope.models.backbone import Backbone
from filterscope.models.classifier import Classifier


def replace(backbone: Backbone, *, num_classes: int) -> Classifier:
    """Exchange the network's last Linear for a new one."""
    path, last = _last_linear(backbone)
    if last is None:  # SqueezeNet classifies with a convolution
        return linear(backbone, num_classes=num_classes)
    _set(backbone.network, path, nn.Identity())
    head = nn.Linear(last.in_features, num_classes)
    return Classifier(backbone, head, num_classes=num_classes, head_path=path)


def append(backbone: Backbone, *, num_classes: int) -> Classifier:
    """Put a Linear on the published logits: `Linear(1000, num_classes)`."""
    _need_trained(backbone, "append")
    _, last = _last_linear(backbone)
    published = last.out_features if last is not None else 1000
    return Classifier(backbone, nn.Linear(published, num_classes), num_classes=num_classes)


def linear(backbone: Backbone, *, num_classes: int) -> Classifier:
    """Put one Linear on the globally pooled convolutional features; needs no fully connected weights."""
    network = backbone.network
    linears = [m for part in _after_features(network) for m in part.modules() if isinstance(m, nn.Linear)]
    if len(linears) == 1 and not isinstance(network, nn.Sequential):
        return replace(backbone, num_classes=num_classes)
    width = [module.out_channels for module in network.modules() if isinstance(module, nn.Conv2d)]
    if isinstance(network, nn.Sequential):
        kept = [(n, m) for n, m in network.named_children()]
        flat = next(i for i, (_, m) in enumerate(kept) if isinstance(m, nn.Flatten))
        for name, _ in kept[flat:]:
            delattr(network, name)
        network.add_module("avgpool", nn.AdaptiveAvgPool2d(1))
        network.add_module("flatten", nn.Flatten())
    elif hasattr(network, "features") and hasattr(network, "classifier"):
        if hasattr(network, "avgpool"):
            network.avgpool = nn.AdaptiveAvgPool2d(1)
            network.classifier = nn.Identity()
        else:
            width = width[:-1] if not linears else width
            network.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    else:
        raise UserError(f"head=linear does not know where the features of {backbone.name} end; use head=replace")
    return Classifier(backbone, nn.Linear(width[-1], num_classes), num_classes=num_classes)


def keep(backbone: Backbone, *, num_classes: int | None = None) -> Classifier:
    """Keep the network as published; its number of classes must be the data's."""
    _need_trained(backbone, "keep")
    path, last = _last_linear(backbone)
    published = last.out_features if last is not None else 1000
    if num_classes not in (None, published):
        raise UserError(
            f"head=keep puts out the {published} classes of {backbone.name}, the data has {num_classes}; "
            "use head=replace, append or linear"
        )
    if last is None:
        return Classifier(backbone, nn.Identity(), num_classes=published)
    _set(backbone.network, path, nn.Identity())
    return Classifier(backbone, last, num_classes=published, head_path=path)


def _need_trained(backbone: Backbone, head: str) -> None:
    if backbone.missing and not backbone.allow_random:
        raise UserError(
            f"head={head} keeps layers that the weights file does not hold ({', '.join(backbone.missing)}); "
            "use head=linear, give complete weights, or say model.allow_random=true"
        )


def _last_linear(backbone: Backbone) -> tuple[str, nn.Linear | None]:
    linears = [(path, m) for path, m in backbone.network.named_modules() if isinstance(m, nn.Linear)]
    return linears[-1] if linears else ("", None)


def _after_features(network: nn.Module) -> list[nn.Module]:
    named = dict(network.named_children())
    parts = [named[name] for name in ("classifier", "fc", "head", "heads") if name in named]
    return parts or [network]


def _set(network: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, module)
