"""A backbone normalises images with the statistics that belong to its weights, then runs a network."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import torchvision
from pydantic import Field
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights, list_models

from filterscope.errors import UserError, suggestion
from filterscope.models.layers import last_layer
from filterscope.models.published_weights import download
from filterscope.models.small_cnn import SmallCNN
from filterscope.models.weights import build_with_weights
from filterscope.registry import register


class Backbone(nn.Module):
    """Images in [0, 1] → `network((images − mean) / std)`.

    `missing` names the tensors that a weights file did not hold and that therefore are still random; it is empty for
    random weights that were asked for. `pretrained` says whether any weights were loaded at all, `allow_random`
    whether heads may keep missing layers, `image_size` at which size the network is at home, `num_classes` how many
    outputs its own last layer has, `categories` what these stand for where the weights were published with names.
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
        categories: Sequence[str] = (),
    ) -> None:
        super().__init__()
        for module in network.modules():
            # An in-place ReLU would overwrite the convolution output that a tap returns.
            if getattr(module, "inplace", False) is True:
                module.inplace = False  # type: ignore[assignment]
        self.network = network
        _, last = last_layer(network)
        self.num_classes = last.out_channels if isinstance(last, nn.Conv2d) else last.out_features
        self.name = name
        self.image_size = image_size
        self.pretrained = pretrained
        self.missing = tuple(missing)
        self.allow_random = allow_random
        self.categories = tuple(categories) if len(categories) == self.num_classes else ()
        self.register_buffer("mean", torch.tensor(list(mean)).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(list(std)).view(1, -1, 1, 1))

    @property
    def in_channels(self) -> int:
        """How many channels an image must have."""
        return self.mean.shape[1]

    def forward(self, images: Tensor) -> Tensor:
        """Return what the network makes of images in [0, 1]."""
        features: Tensor = self.network(self._normalized(images))
        return features

    def _normalized(self, images: Tensor) -> Tensor:
        if images.device.type != "cpu" or images.dim() != 4 or not _lies_by_pixel(images):
            return (images - self.mean).div_(self.std)
        # The same bits as above, where three numbers at a time take far longer than a row's.
        count, channels, height, width = images.shape
        rows = images.permute(0, 2, 3, 1).view(count * height, width * channels)
        mean, std = (each.flatten().repeat(width) for each in (self.mean, self.std))
        return (rows - mean).div_(std).view(count, height, width, channels).permute(0, 3, 1, 2)


def _lies_by_pixel(images: Tensor) -> bool:
    return images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()


@register("model", "torchvision")
def torchvision_backbone(
    *,
    name: str,
    weights: str | None = "imagenet",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    in_channels: int = 3,
    num_classes: int = 1000,
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None,
    allow_random: bool = False,
) -> Backbone:
    """Build a torchvision classifier.

    Args:
        name: as in `torchvision.models.list_models`.
        weights: `imagenet` (torchvision's own, hash-checked), the path of a state dict, or None for random ones.
        mean: of the images the weights were trained on, per channel; None: as torchvision's registry says.
        std: likewise.
        in_channels: must be 3.
        num_classes: what the network itself puts out before `head` has its say; a weights file says its own.
        dropout: replaces the network's own dropout probability.
        allow_random: let heads keep layers that the weights file does not hold.

    Raises:
        UserError: an unknown network, a weights file that does not fit it, a download that failed.
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
        # With `transform_input` it makes of the usual normalisation the one that the published weights expect.
        extra = {"aux_logits": False, "init_weights": True, "transform_input": True}

    def build(num_classes: int) -> nn.Module:
        network: nn.Module = get_model(name, weights=None, num_classes=num_classes, **extra)
        return network

    path = download(published.url, name) if weights == "imagenet" else weights
    network, missing = _with_weights(build, path, name, num_classes=num_classes)
    if dropout is not None:
        _set_dropout(network, dropout, name)
    return Backbone(
        network,
        name=name,
        mean=_per_channel("mean", mean, preset.mean),
        std=_per_channel("std", std, preset.std),
        image_size=image_size,
        pretrained=weights is not None,
        missing=missing,
        allow_random=allow_random,
        categories=published.meta["categories"],
    )


@register("model", "small_cnn")
def small_cnn_backbone(
    *,
    weights: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    in_channels: int = 1,
    image_size: int = 28,
    num_classes: int = 10,
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.4,
    allow_random: bool = False,
) -> Backbone:
    """Build the small network of the FashionMNIST notebook; without `mean` and `std` nothing is normalised.

    `num_classes` is what the network itself puts out before `head` has its say; a weights file says its own.

    Raises:
        UserError: images it cannot take, or a weights file that does not fit.
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
    network, missing = _with_weights(build, weights, fitted, num_classes=num_classes)
    return Backbone(
        network,
        name="small_cnn",
        mean=_per_channel("mean", mean, [0.0] * in_channels),
        std=_per_channel("std", std, [1.0] * in_channels),
        image_size=image_size,
        pretrained=weights is not None,
        missing=missing,
        allow_random=allow_random,
    )


def _with_weights(
    build: Callable[[int], nn.Module], path: str | Path | None, name: str, *, num_classes: int
) -> tuple[nn.Module, tuple[str, ...]]:
    if path is None:
        return build(num_classes), ()
    return build_with_weights(build, path=Path(path).expanduser(), name=name, num_classes=num_classes)


def _per_channel(knob: str, given: Sequence[float] | None, published: Sequence[float]) -> Sequence[float]:
    if given is None:
        return published
    if len(given) != len(published) or (knob == "std" and min(given) <= 0):
        positive = "positive " if knob == "std" else ""
        raise UserError(f"model.{knob}={list(given)}: must be {len(published)} {positive}numbers, one per channel")
    return given


def _set_dropout(network: nn.Module, dropout: float, name: str) -> None:
    dropouts = [module for module in network.modules() if isinstance(module, nn.Dropout)]
    if not dropouts:
        raise UserError(f"model.dropout={dropout}: {name} has no dropout; leave it at null")
    for module in dropouts:
        module.p = dropout
