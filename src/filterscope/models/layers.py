"""Layers of a network: their names, kinds and channels, and how to find one by its name."""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from torch import nn

from filterscope.errors import UserError, suggestion

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Sigmoid, nn.Tanh)
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
NORMS = (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm, nn.InstanceNorm2d)
MAX_LISTED = 60  # names in an error message


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer that can be analysed.

    Attributes:
        name: under which it appears in tags, tables and messages.
        path: of its module below the classifier.
        kind: one of `conv linear activation pool norm module`.
        num_channels: of its output; None if the output is neither feature maps nor a vector.
        aliases: further accepted names.
    """

    name: str
    path: str
    kind: str
    num_channels: int | None
    aliases: tuple[str, ...] = ()


def name_layers(network: nn.Module, shapes: Mapping[str, tuple[int, ...]], *, prefix: str = "") -> dict[str, Layer]:
    """Name the layers of a network, in the network's order.

    In a plain chain (all convolutions in one run of nested `nn.Sequential`s: AlexNet, VGG) a block ends at a MaxPool
    and convolutions are counted within a block: `block1_conv1, block1_relu1, …, block5_pool`; Linears are
    `fc1, fc2, …`. In other networks the name of a layer is its module's path. In all networks the module's path and,
    for convolutions, `conv_1, conv_2, …` (counted through the network) are accepted too.

    Args:
        network: any network; a Linear that was replaced by `nn.Identity` does not count as a layer.
        shapes: `{path: output shape without the batch dimension}` of the modules that run; others are left out.
        prefix: is put before every path.
    """
    chained = dict(_chain_names(_chain(network)))
    counts: Counter[str] = Counter()
    layers: dict[str, Layer] = {}
    for path, module in network.named_modules():
        if not path or path not in shapes or isinstance(module, nn.Identity):
            continue
        kind = kind_of(module)
        counts[kind] += 1
        name = chained.get(path, f"fc{counts[kind]}" if chained and kind == "linear" else path)
        aliases = [path, f"conv_{counts[kind]}"] if kind == "conv" else [path]
        layers[name] = Layer(
            name=name,
            path=f"{prefix}{path}",
            kind=kind,
            num_channels=_num_channels(module, shapes[path]),
            aliases=tuple(alias for alias in aliases if alias != name),
        )
    return layers


def kind_of(module: nn.Module) -> str:
    """Return the kind of layer that a module is; `module` if it is none of the known kinds."""
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
    """Return the layer with this name or alias.

    Raises:
        UserError: there is none; the message names the nearest one and lists the known ones.
    """
    by_alias = {alias: layer for layer in layers.values() for alias in layer.aliases}
    layer = layers.get(name) or by_alias.get(name)
    if layer is not None:
        return layer
    known = [layer.name for layer in layers.values() if layer.kind != "module"]
    if len(known) > MAX_LISTED:
        known = convolutions(layers)
    more = f" and {len(known) - MAX_LISTED} more" if len(known) > MAX_LISTED else ""
    nearest = suggestion(name, [*layers, *by_alias])
    raise UserError(f"unknown layer {name!r}{nearest}; this network has {', '.join(known[:MAX_LISTED])}{more}")


def weighted_layers(network: nn.Module) -> list[str]:
    """Return the paths of all convolutions and Linears, in the network's order."""
    return [path for path, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def last_layer(network: nn.Module) -> tuple[str, nn.Linear | nn.Conv2d]:
    """Return path and module of the layer that computes the logits.

    It is what `get_classifier()` returns (timm's networks), otherwise the last Linear, or the last convolution of a
    network without a Linear (SqueezeNet).
    """
    modules = list(network.named_modules())
    get: Any = getattr(network, "get_classifier", None) if hasattr(network, "pretrained_cfg") else None
    classifier = get() if callable(get) else None
    for path, module in modules:
        if module is classifier and isinstance(module, nn.Linear | nn.Conv2d):
            return path, module
    for kind in (nn.Linear, nn.Conv2d):
        found = [(path, module) for path, module in modules if isinstance(module, kind)]
        if found:
            return found[-1]
    raise ValueError(f"{type(network).__name__} has neither a Linear nor a convolution")


def convolutions(layers: Mapping[str, Layer]) -> list[str]:
    """Return the names of all convolutions, in the network's order."""
    return [layer.name for layer in layers.values() if layer.kind == "conv"]


def block_ends(layers: Mapping[str, Layer], kinds: Collection[str] = ("conv",)) -> list[str]:
    """Return the names of the layers at which blocks end.

    These are the `blockN_pool` layers of a chain; in other networks the topmost modules that contain convolutions
    (`layer1 … layer4` of a ResNet); in a chain without pools its last convolution.

    Args:
        layers: of the network.
        kinds: of the layers that make a module a block; with `linear` too, transformers have blocks (`blocks.11`),
            whose outputs need not be feature maps.
    """
    pools = [name for name in layers if re.fullmatch(r"block\d+_pool", name)]
    if pools:
        return pools
    paths = [layer.path for layer in layers.values() if layer.kind in kinds]
    containers = _block_containers(paths)
    return [name for name, layer in layers.items() if layer.path in containers] or convolutions(layers)[-1:]


def channels_of(layers: Mapping[str, Layer], name: str, channels: list[int] | int | None) -> list[int]:
    """Return channel indices of a layer.

    Args:
        layers: of the network.
        name: of the layer.
        channels: a list of indices, the number of first channels to take, or None for all.

    Raises:
        UserError: a channel does not exist, or the layer's output has no channels.
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


def _block_containers(paths: list[str]) -> set[str]:
    """Return the topmost modules that contain convolutions, below any one that contains nearly all of them."""
    parent = ""
    while True:
        below = (path.removeprefix(parent).split(".") for path in paths if path.startswith(parent))
        counts = Counter(f"{parent}{parts[0]}" for parts in below if len(parts) > 1)
        if not counts or max(counts.values()) < 0.9 * len(paths):
            return set(counts)
        parent = f"{counts.most_common(1)[0][0]}."


def _num_channels(module: nn.Module, shape: tuple[int, ...]) -> int | None:
    own: int | None = getattr(module, "out_channels", None) or getattr(module, "out_features", None)
    return own or (shape[0] if len(shape) in (1, 3) else None)


def _chain(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the leaves of the innermost container of all convolutions if the network nests only Sequentials."""
    modules = dict(network.named_modules())
    leaves = {path: module for path, module in modules.items() if next(module.children(), None) is None}
    parents = [path.split(".")[:-1] for path, module in leaves.items() if isinstance(module, nn.Conv2d)]
    if not all(path in leaves or path == "" or isinstance(modules[path], nn.Sequential) for path in modules):
        return []
    shared = takewhile(lambda names: len(set(names)) == 1, zip(*parents, strict=False))
    parent = "".join(f"{names[0]}." for names in shared)
    return [(path, module) for path, module in leaves.items() if path.startswith(parent)]


def _chain_names(chain: list[tuple[str, nn.Module]]) -> Iterator[tuple[str, str]]:
    block, conv = 1, 0
    last = max((i for i, (_, module) in enumerate(chain) if isinstance(module, nn.Conv2d)), default=-1)
    for i, (path, module) in enumerate(chain):
        kind = kind_of(module)
        conv += kind == "conv"
        if isinstance(module, nn.MaxPool2d):
            yield path, f"block{block}_pool"
            block, conv = block + 1, 0
            if i > last:
                return
        elif kind in ("conv", "activation", "norm") and conv:
            yield path, f"block{block}_{'relu' if kind == 'activation' else kind}{conv}"


def hooks_of(module: nn.Module) -> list[dict[int, Any]]:
    """Return the dictionaries in which torch keeps the forward and backward hooks of a module, by handle id.

    These are attributes such as `_forward_pre_hooks`; torch has no public way to list or to leave out hooks.
    """
    return [value for name, value in vars(module).items() if re.match(r"_(forward|backward)(_pre)?_hooks", name)]
