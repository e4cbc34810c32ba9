"""Backbones: networks that normalise their images first, and the builders for torchvision and the small CNN."""

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Annotated, Any

import torch
import torchvision
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights, list_models
from torchvision.ops import StochasticDepth

from filterscope.errors import UserError, as_written, first_line, suggestion
from filterscope.models.layers import last_layer
from filterscope.models.network_copy import switch_off_inplace
from filterscope.models.weights import build_with_weights, download_weights
from filterscope.registry import PLUGINS, register, registered, target_of

Probability = Annotated[float, Field(ge=0, lt=1)]


class Backbone(nn.Module):
    """A network with its normalisation: `network((images − mean) / std)` for images in [0, 1].

    Attributes:
        network: the module that is run.
        name: of the network.
        image_size: at which the network was trained, in pixels.
        pretrained: whether any weights were loaded.
        missing: names of the tensors that a weights file did not hold and that are random; empty for a network whose
            weights are all random on request.
        allow_random: whether heads may keep layers that are in `missing`.
        published_layers: whether the layers are those of the published network, so that exported weights load there.
        num_classes: number of outputs of the network's own last layer.
        categories: class names of these outputs; empty if the weights were published without names.
        constructor: Python code that builds the published network with `{num_classes}` outputs; empty if unknown.

    Args:
        owned: whether the network may be changed: its in-place activation functions are replaced by others.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        mean: Sequence[float],
        std: Sequence[float],
        image_size: int = 224,
        pretrained: bool = False,
        missing: Sequence[str] = (),
        allow_random: bool = False,
        published_layers: bool = True,
        categories: Sequence[str] = (),
        constructor: str = "",
        owned: bool = True,
    ) -> None:
        super().__init__()
        if owned:
            switch_off_inplace(network)  # an in-place ReLU would overwrite the features that are cached
        self.network = network
        _, last = last_layer(network)
        self.num_classes = last.out_channels if isinstance(last, nn.Conv2d) else last.out_features
        self.name = name
        self.image_size = image_size
        self.pretrained = pretrained
        self.missing = tuple(missing)
        self.allow_random = allow_random
        self.published_layers = published_layers
        self.categories = tuple(categories) if len(categories) == self.num_classes else ()
        self.constructor = constructor
        self.register_buffer("mean", torch.tensor(list(mean)).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(list(std)).view(1, -1, 1, 1))

    @property
    def in_channels(self) -> int:
        """Number of channels of the images."""
        return self.mean.shape[1]

    def forward(self, images: Tensor) -> Tensor:
        """Return the network's output for images `(N, C, H, W)` in [0, 1]."""
        features: Tensor = self.network(self._normalize(images))
        return features

    def _normalize(self, images: Tensor) -> Tensor:
        if images.device.type != "cpu" or images.dim() != 4 or not _is_channels_last(images):
            return (images - self.mean).div_(self.std)
        # The same bits as above in a fifth of the time: broadcasting over three channels at a time is slow.
        count, channels, height, width = images.shape
        rows = images.permute(0, 2, 3, 1).view(count * height, width * channels)
        mean, std = (each.flatten().repeat(width) for each in (self.mean, self.std))
        return (rows - mean).div_(std).view(count, height, width, channels).permute(0, 3, 1, 2)


def _is_channels_last(images: Tensor) -> bool:
    return images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()


@register("model", "torchvision")
def torchvision_backbone(
    *,
    name: str,
    weights: str | None = "imagenet",
    mean: Sequence[float] | None = None,
    std: Sequence[PositiveFloat] | None = None,
    in_channels: PositiveInt = 3,
    num_classes: PositiveInt = 1000,
    dropout: Probability | None = None,
    drop_path: Probability | None = None,
    fully_connected: bool = True,
    allow_random: bool = False,
) -> Backbone:
    """Build a classifier of torchvision.

    Args:
        name: as in `torchvision.models.list_models`.
        weights: `imagenet` (torchvision's, hash checked), the path of a state dict or run folder, or None for random.
        mean: per channel, of the images the weights were trained on; None: as published.
        std: likewise.
        in_channels: must be 3.
        num_classes: of the network itself, before the head; a weights file overrides it.
        dropout: replaces the network's own dropout probability.
        drop_path: probability that the last residual branch is skipped in training, less in earlier ones; None: the
            network's own.
        fully_connected: whether AlexNet and VGG have their three fully connected layers, which hold most parameters;
            otherwise one Linear on the globally pooled output of the convolutions takes their place.
        allow_random: let heads keep layers that the weights file does not hold.

    Raises:
        UserError: the network is unknown, the weights file does not fit it, or the download failed.
    """
    known = list_models(module=torchvision.models)
    if name not in known:
        raise UserError(f"unknown network {name!r}{suggestion(name, known)}; torchvision has {', '.join(known)}")
    if in_channels != 3:
        raise UserError(f"{name} takes images of 3 channels, not {in_channels}; model=small_cnn takes 1 or 3")
    published = get_model_weights(name).DEFAULT
    preset = published.transforms()
    image_size = preset.crop_size[0]
    extra: dict[str, Any] = {}
    if name.startswith("vit_"):
        extra = {"image_size": image_size}
    elif name in ("googlenet", "inception_v3"):
        # `transform_input` turns ImageNet's normalisation into the one that the published weights expect.
        extra = {"aux_logits": False, "init_weights": True, "transform_input": True}

    def build(num_classes: int) -> nn.Module:
        network: nn.Module = get_model(name, weights=None, num_classes=num_classes, **extra)
        return network if fully_connected else _pooled(network, num_classes, name)

    path = download_weights(published.url, name) if weights == "imagenet" else weights
    network, missing = build_with_weights(build, path=path, name=name, num_classes=num_classes)
    if dropout is not None:
        _set_dropout(network, dropout, name)
    if drop_path is not None:
        _set_drop_path(network, drop_path, name)
    return Backbone(
        network,
        name=name,
        mean=per_channel("model.mean", mean, preset.mean),
        std=per_channel("model.std", std, preset.std),
        image_size=image_size,
        pretrained=weights is not None,
        missing=missing,
        allow_random=allow_random,
        published_layers=fully_connected,
        categories=published.meta["categories"],
        constructor=call_code(f"torchvision.models.{name}", **extra) if fully_connected else "",
    )


class SmallCNN(nn.Sequential):
    """conv 10 – pool – conv 20 – pool – fc 50 – dropout – fc, with 3×3 kernels.

    The parameters have the notebook's names (`conv1 conv2 fc1 fc2`), so that its state dict loads.
    Images are `(N, in_channels, image_size, image_size)`; the output is `(N, num_classes)`.
    """

    def __init__(
        self,
        *,
        in_channels: int = 1,
        image_size: int = 28,
        num_classes: int = 10,
        dropout: float = 0.4,
    ) -> None:
        side = ((image_size - 2) // 2 - 2) // 2  # two unpadded 3×3 convolutions, each followed by a pooling of 2
        super().__init__(
            OrderedDict(
                conv1=nn.Conv2d(in_channels, 10, 3),
                relu1=nn.ReLU(),
                pool1=nn.MaxPool2d(2),
                conv2=nn.Conv2d(10, 20, 3),
                relu2=nn.ReLU(),
                pool2=nn.MaxPool2d(2),
                flatten=nn.Flatten(),
                fc1=nn.Linear(20 * max(side, 0) ** 2, 50),
                relu3=nn.ReLU(),
                fc1_drop=nn.Dropout(dropout),
                fc2=nn.Linear(50, num_classes),
            )
        )


@register("model", "small_cnn")
def small_cnn_backbone(
    *,
    weights: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[PositiveFloat] | None = None,
    in_channels: PositiveInt = 1,
    image_size: int = 28,
    num_classes: PositiveInt = 10,
    dropout: Probability = 0.4,
    allow_random: bool = False,
) -> Backbone:
    """Build the small network of the FashionMNIST notebook.

    Args:
        weights: the path of a state dict or run folder, or None for random.
        mean: per channel, of the images the weights were trained on; None: images are not normalised.
        std: likewise.
        in_channels: 1 or 3.
        image_size: height and width of the images in pixels, at least 10.
        num_classes: of the network itself, before the head; a weights file overrides it.
        dropout: probability.
        allow_random: let heads keep layers that the weights file does not hold.

    Raises:
        UserError: the images are of an impossible size, or the weights file does not fit.
    """
    if in_channels not in (1, 3):
        raise UserError(f"model.in_channels={in_channels}: small_cnn takes images of 1 or 3 channels")
    if image_size < 10:
        raise UserError(
            f"images of {image_size}×{image_size} pixels cannot pass through small_cnn; the smallest it takes is 10"
        )
    if weights == "imagenet":
        raise UserError("model.weights=imagenet: small_cnn has no published weights; give a path or null")

    def build(num_classes: int) -> nn.Module:
        return SmallCNN(in_channels=in_channels, image_size=image_size, num_classes=num_classes, dropout=dropout)

    fitted = f"small_cnn for images of {image_size}×{image_size} pixels"
    network, missing = build_with_weights(build, path=weights, name=fitted, num_classes=num_classes)
    return Backbone(
        network,
        name="small_cnn",
        mean=per_channel("model.mean", mean, [0.0] * in_channels),
        std=per_channel("model.std", std, [1.0] * in_channels),
        image_size=image_size,
        pretrained=weights is not None,
        missing=missing,
        allow_random=allow_random,
        constructor=call_code("filterscope.models.backbone.SmallCNN", in_channels=in_channels, image_size=image_size),
    )


@register("model", "callable")
def callable_backbone(
    *,
    path: str,
    options: dict[str, Any] | None = None,
    weights: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[PositiveFloat] | None = None,
    in_channels: PositiveInt = 3,
    image_size: int = 224,
    num_classes: PositiveInt = 1000,
    allow_random: bool = False,
) -> Backbone:
    """Build a network of one's own with a registered function or class, which gets `num_classes` and the options.

    Args:
        path: its dotted name, `my_package.my_net`. What the command line names is registered by that
            (`filterscope.config.factory`); a checkpoint alone can only name what a plugin has registered.
        options: further arguments.
        weights: the path of a state dict or run folder, or None for random.
        mean: per channel, of the images the weights were trained on; None: images are not normalised.
        std: likewise.
        in_channels: of the images.
        image_size: height and width of the images in pixels.
        num_classes: of the network itself, before the head; a weights file overrides it.
        allow_random: let heads keep layers that the weights file does not hold.

    Raises:
        UserError: nothing is registered under that name, it refuses its arguments or returns no network, or the weights
            file does not fit.
    """
    part = next((each for each in registered("model").values() if target_of(each) == path), None)
    if part is None:
        raise UserError(
            f"model.path={path!r} is not registered: name the module that registers it in the entry point group "
            f"{PLUGINS}, or give model=callable model.path={path}"
        )

    def build(num_classes: int) -> nn.Module:
        try:
            network = part(num_classes=num_classes, **(options or {}))
        except TypeError as error:
            raise UserError(f"model.path={path}: {first_line(error)}; it gets num_classes and model.options") from error
        if not isinstance(network, nn.Module):
            raise UserError(f"model.path={path} returned a {type(network).__name__}, not a torch.nn.Module")
        return network

    name = path.rpartition(".")[2]
    network, missing = build_with_weights(build, path=weights, name=name, num_classes=num_classes)
    return Backbone(
        network,
        name=name,
        mean=per_channel("model.mean", mean, [0.0] * in_channels),
        std=per_channel("model.std", std, [1.0] * in_channels),
        image_size=image_size,
        pretrained=weights is not None,
        missing=missing,
        allow_random=allow_random,
        constructor=call_code(path, **(options or {})),
    )


def call_code(function: str, *first: str, **options: object) -> str:
    """Return Python code of a call that builds a network; `{num_classes}` stands for its number of classes."""
    given = (f"{name}={value!r}" for name, value in options.items() if value is not None)
    arguments = [*first, "num_classes={num_classes}", *given]
    return f"{function}({', '.join(arguments)})"


def per_channel(option: str, given: Sequence[float] | None, published: Sequence[float]) -> Sequence[float]:
    """Return the given statistics, or the published ones for None.

    Raises:
        UserError: there is another number of channels, or a number that is not finite or, in `std`, not positive.
    """
    if given is None:
        return published
    positive = "positive " if option.endswith("std") else ""
    try:
        numbers = [float(each) for each in given]
    except (TypeError, ValueError):  # Python code may give anything
        numbers = []
    if len(numbers) != len(published) or not all(map(math.isfinite, numbers)) or (positive and min(numbers) <= 0):
        raise UserError(
            f"{option}={as_written(given)}: must be {len(published)} finite {positive}numbers, one per channel"
        )
    return numbers


def _pooled(network: nn.Module, num_classes: int, name: str) -> nn.Module:
    """Replace the fully connected layers of AlexNet or VGG by one Linear on globally pooled features."""
    features: Any = getattr(network, "features", None)
    last = [module for module in features.modules() if isinstance(module, nn.Conv2d)] if features else []
    if not last or not isinstance(getattr(network, "classifier", None), nn.Sequential):
        raise UserError(f"model.fully_connected=false: {name} has no fully connected layers before its last one")
    network.avgpool = nn.AdaptiveAvgPool2d(1)
    network.classifier = nn.Linear(last[-1].out_channels, num_classes)
    return network


def _set_dropout(network: nn.Module, dropout: float, name: str) -> None:
    dropouts = [module for module in network.modules() if isinstance(module, nn.Dropout)]
    if not dropouts:
        raise UserError(f"model.dropout={dropout}: {name} has no dropout; leave it at null")
    for module in dropouts:
        module.p = dropout


def _set_drop_path(network: nn.Module, drop_path: float, name: str) -> None:
    branches = [module for module in network.modules() if isinstance(module, StochasticDepth)]
    if not branches:
        raise UserError(f"model.drop_path={drop_path}: torchvision skips no branches of {name}; leave it at null")
    for place, module in enumerate(branches, start=1):
        module.p = drop_path * place / len(branches)
