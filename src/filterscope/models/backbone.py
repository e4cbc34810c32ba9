"""A backbone normalises images with the statistics that belong to its weights, then runs a network."""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlparse

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import Weights, get_model, get_model_weights, list_models

from filterscope.errors import UserError
from filterscope.models.small_cnn import SmallCNN
from filterscope.models.weights import load_weights

log = logging.getLogger(__name__)


class Backbone(nn.Module):
    """Images in [0, 1] → `network((images − mean) / std)`.

    `missing` names the parameters that a weights file did not hold and that therefore are still random; it is empty
    for random weights that were asked for. `pretrained` says whether any weights were loaded at all.
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
        pretrained: bool = False,
        missing: Sequence[str] = (),
        allow_random: bool = False,
    ) -> None:
        super().__init__()
        self.network = no_inplace(network)
        self.name = name
        self.pretrained = pretrained
        self.missing = tuple(missing)
        self.allow_random = allow_random
        self.register_buffer("mean", torch.tensor(list(mean)).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(list(std)).view(1, -1, 1, 1))

    @property
    def in_channels(self) -> int:
        """How many channels an image must have."""
        return self.mean.shape[1]

    def forward(self, images: Tensor) -> Tensor:
        """Return what the network makes of images in [0, 1]."""
        features: Tensor = self.network((images - self.mean) / self.std)
        return features


def no_inplace(network: nn.Module) -> nn.Module:
    """Make every module of the network write its output to a tensor of its own."""
    # An in-place ReLU overwrites the convolution output that a tap returns.
    for module in network.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]
    return network


def torchvision_backbone(
    *,
    name: str,
    weights: str | None = "imagenet",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    in_channels: int = 3,
    dropout: float | None = None,
    allow_random: bool = False,
) -> Backbone:
    """Build a torchvision classifier.

    Args:
        name: as in `torchvision.models.list_models`.
        weights: `imagenet` (torchvision's own, hash-checked), the path of a state dict, or None for random ones.
        mean: of the images the weights were trained on, per channel; None: as torchvision's registry says.
        std: likewise.
        in_channels: must be 3.
        dropout: replaces the network's own dropout probability.
        allow_random: let heads keep fully connected layers that the weights file does not hold.
    """
    if name not in list_models(module=torchvision.models):
        raise UserError(
            f"unknown network {name!r}; torchvision has {', '.join(list_models(module=torchvision.models))}"
        )
    if in_channels != 3:
        raise UserError(f"{name} takes images of 3 channels, not {in_channels}; model=small_cnn takes 1 or 3")
    published = get_model_weights(name).DEFAULT
    network = _network(name, published if weights == "imagenet" else None)
    _set_dropout(network, dropout)
    missing = load_weights(network, weights, name) if weights not in (None, "imagenet") else ()
    preset = published.transforms()
    return Backbone(
        network,
        name=name,
        mean=mean if mean is not None else preset.mean,
        std=std if std is not None else preset.std,
        pretrained=weights is not None,
        missing=missing,
        allow_random=allow_random,
    )


def small_cnn_backbone(
    *,
    weights: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    in_channels: int = 1,
    image_size: int = 28,
    num_classes: int = 10,
    dropout: float = 0.4,
    allow_random: bool = False,
) -> Backbone:
    """Build the small network of the FashionMNIST notebook; without `mean` and `std` nothing is normalised.

    `num_classes` is what the network itself puts out, before `head` has its say: 10 in the notebook's weights.
    """
    if in_channels not in (1, 3):
        raise UserError(f"model.in_channels={in_channels}: small_cnn takes images of 1 or 3 channels")
    if image_size < 10:
        raise UserError(
            f"images of {image_size}×{image_size} pixels cannot pass through small_cnn; the smallest it takes is 10"
        )
    if weights == "imagenet":
        raise UserError("model.weights=imagenet: small_cnn has no published weights; give a path or null")
    network = SmallCNN(in_channels=in_channels, image_size=image_size, num_classes=num_classes, dropout=dropout)
    missing = load_weights(network, weights, "small_cnn") if weights is not None else ()
    return Backbone(
        network,
        name="small_cnn",
        mean=mean if mean is not None else [0.0] * in_channels,
        std=std if std is not None else [1.0] * in_channels,
        pretrained=weights is not None,
        missing=missing,
        allow_random=allow_random,
    )


def _network(name: str, weights: Weights | None) -> nn.Module:
    extra: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        extra = {"aux_logits": False} if weights else {"aux_logits": False, "init_weights": True}
    if weights is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            network: nn.Module = get_model(name, weights=None, **extra)
            return network
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(weights.url).path).name
    try:
        network = get_model(name, weights=weights, **extra)
        return network
    except (URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(
            f"could not download the weights of {name} from {urlparse(weights.url).netloc} ({reason}); "
            f"put {weights.url} at {file} by hand, or give model.weights=<path> or model.weights=null"
        ) from error
    except RuntimeError as error:
        if "invalid hash" not in str(error):
            raise
        raise UserError(
            f"the weights of {name} from {weights.url} are damaged ({error}); delete {file} and try again"
        ) from error


def _set_dropout(network: nn.Module, dropout: float | None) -> None:
    if dropout is None:
        return
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
