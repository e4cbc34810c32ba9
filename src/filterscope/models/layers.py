"""Layers of a network: their names, kinds and channels, and how to find one by its name."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, takewhile
from typing import Any

from torch import nn

from filterscope.errors import UserError, suggestion
from filterscope.models.forward_trace import ModuleCall

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
        call: which run of its module in a forward pass the layer is, from 0; a module that runs twice is two layers.
        calls: how often the module runs.
        next_layers: names of the layers without submodules that take its output.
        next_functions: names of the torch functions that take its output, such as `batch_norm`, `relu`, `add`; those
            that modules call count too.
    """

    name: str
    path: str
    kind: str
    num_channels: int | None
    aliases: tuple[str, ...] = ()
    call: int = 0
    calls: int = 1
    next_layers: tuple[str, ...] = ()
    next_functions: tuple[str, ...] = ()


def name_layers(network: nn.Module, calls: Sequence[ModuleCall], *, prefix: str = "") -> dict[str, Layer]:
    """Name the layers of a network, in the order in which they run.

    In a plain chain (all convolutions in one run of nested `nn.Sequential`s: AlexNet, VGG) a block ends at a MaxPool
    and convolutions are counted within a block: `block1_conv1, block1_relu1, …, block5_pool`; Linears are
    `fc1, fc2, …`. In other networks the name of a layer is its module's path. In all networks the module's path and,
    for convolutions, `conv_1, conv_2, …` (counted through the network) are accepted too. The second of two layers that
    would have the same name is called `<name>@2`, as is the second run of a module.

    Args:
        network: any network; a Linear that was replaced by `nn.Identity` does not count as a layer.
        calls: the runs of its modules; modules that do not run are left out, and so are those inside a layer of a known
            kind, which compute its weights.
        prefix: is put before every path.
    """
    modules = dict(network.named_modules())
    for path, module in list(modules.items()):
        if kind_of(module) != "module":
            for below, _ in module.named_modules():
                modules.pop(f"{path}.{below}", None)
    runs = [call for call in calls if call.path and not isinstance(modules.get(call.path), nn.Identity | None)]
    chained = _chain_names(modules, _chain(modules, runs))
    times = Counter(call.path for call in runs)
    counts: Counter[str] = Counter()
    layers: dict[str, Layer] = {}
    for call in runs:
        path, kind = call.path, kind_of(modules[call.path])
        counts[kind] += call.number == 0
        repeated = path if not call.number else f"{path}@{call.number + 1}"
        number = f"fc{counts[kind]}" if chained and kind == "linear" and not call.number else repeated
        name = _unique(chained.get((path, call.number), number), layers)
        aliases = [repeated, f"conv_{counts[kind]}"] if kind == "conv" and not call.number else [repeated]
        layers[name] = Layer(
            name=name,
            path=f"{prefix}{path}",
            kind=kind,
            num_channels=_num_channels(modules[path], call.shape),
            aliases=tuple(alias for alias in aliases if alias != name),
            call=call.number,
            calls=times[path],
            next_functions=tuple(call.next_functions),
        )
    names = {(call.path, call.number): name for call, name in zip(runs, layers, strict=True)}
    for call, name in zip(runs, list(layers), strict=True):
        after = tuple(names[each] for each in call.next_modules if each in names)
        layers[name] = replace(layers[name], next_layers=after)
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
    """Return the names of all convolutions, in the order in which they first run."""
    return [layer.name for layer in layers.values() if layer.kind == "conv" and not layer.call]


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


def is_leaf(module: nn.Module) -> bool:
    """Return whether a module computes its output itself; what a convolution holds only computes its weights."""
    return kind_of(module) != "module" or next(module.children(), None) is None


def _unique(name: str, taken: Mapping[str, Layer]) -> str:
    names = (name if number == 1 else f"{name}@{number}" for number in count(1))
    return next(each for each in names if each not in taken)


def _chain(modules: Mapping[str, nn.Module], runs: Sequence[ModuleCall]) -> list[ModuleCall]:
    """Return the runs of leaves of the innermost container of all convolutions if only Sequentials are nested."""
    if not all(path == "" or isinstance(module, nn.Sequential) or is_leaf(module) for path, module in modules.items()):
        return []
    leaves = [run for run in runs if is_leaf(modules[run.path])]
    parents = [run.path.split(".")[:-1] for run in leaves if kind_of(modules[run.path]) == "conv"]
    shared = takewhile(lambda names: len(set(names)) == 1, zip(*parents, strict=False))
    parent = "".join(f"{names[0]}." for names in shared)
    return [run for run in leaves if run.path.startswith(parent)]


def _chain_names(modules: Mapping[str, nn.Module], chain: Sequence[ModuleCall]) -> dict[tuple[str, int], str]:
    """Return the names by path and number of the run."""
    names: dict[tuple[str, int], str] = {}
    block, conv = 1, 0
    kinds = [kind_of(modules[run.path]) for run in chain]
    last = max((i for i, kind in enumerate(kinds) if kind == "conv"), default=-1)
    for i, (run, kind) in enumerate(zip(chain, kinds, strict=True)):
        conv += kind == "conv"
        if isinstance(modules[run.path], nn.MaxPool2d):
            names[run.path, run.number] = f"block{block}_pool"
            block, conv = block + 1, 0
            if i > last:
                break
        elif kind in ("conv", "activation", "norm") and conv:
            names[run.path, run.number] = f"block{block}_{'relu' if kind == 'activation' else kind}{conv}"
    return names
