"""What a layer is, and how to ask for one by name."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from filterscope.errors import UserError, suggestion

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Sigmoid, nn.Tanh)
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
NORMS = (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm, nn.InstanceNorm2d)
MOST_NAMES = 60  # that an error message lists


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer that can be looked at.

    `path` is where the module lies below the classifier; `kind` is one of `conv linear activation pool norm module`;
    `num_channels` is the number of channels of its output, None where that is
    neither maps nor a vector.
    """

    name: str
    path: str
    kind: str
    num_channels: int | None
    aliases: tuple[str, ...] = ()


def kind_of(module: nn.Module) -> str:
    """Return which kind of layer a module is."""
    for kind, types in (
        ("conv", nn.Conv2d),
        ("linear", nn.Linear),
        ("activation", ACTIVATIONS),
        ("pool", POOLS),
        ("norm", NORMS),
    ):
        if isinstance(module, types):
            return kind
    return "module"


def find_layer(layers: Mapping[str, Layer], name: str) -> Layer:
    """Return the layer of that name or alias.

    Raises:
        UserError: there is none; the message names the nearest one and lists the known ones.
    """
    by_alias = {alias: layer for layer in layers.values() for alias in layer.aliases}
    layer = layers.get(name) or by_alias.get(name)
    if layer is not None:
        return layer
    known = [layer.name for layer in layers.values() if layer.kind != "module"]
    if len(known) > MOST_NAMES:
        known = convolutions(layers)
    more = f" and {len(known) - MOST_NAMES} more" if len(known) > MOST_NAMES else ""
    meant = suggestion(name, [*layers, *by_alias])
    raise UserError(f"unknown layer {name!r}{meant}; this network has {', '.join(known[:MOST_NAMES])}{more}")


def last_layer(network: nn.Module) -> tuple[str, nn.Linear | nn.Conv2d]:
    """Return path and module of the last Linear, or of the last convolution where there is none (SqueezeNet)."""
    modules = list(network.named_modules())
    for kind in (nn.Linear, nn.Conv2d):
        found = [(path, module) for path, module in modules if isinstance(module, kind)]
        if found:
            return found[-1]
    raise ValueError(f"{type(network).__name__} has neither a Linear nor a convolution")


def convolutions(layers: Mapping[str, Layer]) -> list[str]:
    """Return the names of all convolutions, in the network's order."""
    return [layer.name for layer in layers.values() if layer.kind == "conv"]


def block_ends(layers: Mapping[str, Layer]) -> list[str]:
    """Return the names of the layers at which blocks end.

    These are the `blockN_pool`s of a chain; elsewhere the topmost modules that hold convolutions (`layer1 … layer4`
    of a ResNet); in a chain without pools its last convolution.
    """
    pools = [name for name in layers if re.fullmatch(r"block\d+_pool", name)]
    if pools:
        return pools
    paths = [layer.path for layer in layers.values() if layer.kind == "conv"]
    holders = _holders(paths)
    return [name for name, layer in layers.items() if layer.path in holders] or convolutions(layers)[-1:]


def channels_of(layers: Mapping[str, Layer], name: str, channels: list[int] | int | None) -> list[int]:
    """Return the indices of the channels asked for: a list as it is, the first `n`, or all of them for `None`.

    Raises:
        UserError: a channel does not exist, or the layer has no channels of its own.
    """
    layer = find_layer(layers, name)
    if layer.num_channels is None:
        raise UserError(f"layer {name!r} has no channels of its own; choose one of {', '.join(convolutions(layers))}")
    if channels is None:
        return list(range(layer.num_channels))
    if isinstance(channels, int):
        return list(range(min(channels, layer.num_channels)))
    wrong = [channel for channel in channels if not 0 <= channel < layer.num_channels]
    if wrong:
        raise UserError(f"channel {wrong[0]} of {name} does not exist; it has 0 to {layer.num_channels - 1}")
    return list(channels)


def _holders(paths: list[str]) -> set[str]:
    """Return the topmost modules that hold convolutions, below any one that holds nearly all of them."""
    parent = ""
    while True:
        below = (path.removeprefix(parent).split(".") for path in paths if path.startswith(parent))
        counts = Counter(f"{parent}{parts[0]}" for parts in below if len(parts) > 1)
        if not counts or max(counts.values()) < 0.9 * len(paths):
            return set(counts)
        parent = f"{counts.most_common(1)[0][0]}."
