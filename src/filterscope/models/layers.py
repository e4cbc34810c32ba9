"""Names for the layers of any network: one rule for plain chains, the module's own path elsewhere."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from torch import nn

from filterscope.errors import UserError

ACTIVATIONS = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Hardswish,
    nn.Sigmoid,
    nn.Tanh,
)
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
NORMS = (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm, nn.InstanceNorm2d)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer that can be looked at.

    `path` is where the module lies below the classifier; `kind` is one of `conv linear activation pool norm module`;
    `num_channels` is the number of channels of its output where that is known without running it.
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


def name_layers(network: nn.Module, prefix: str = "") -> dict[str, Layer]:
    """Name the layers of a network in their order; `prefix` is prepended to every path.

    In a plain chain (all convolutions in one run of nested `nn.Sequential`s of leaves: AlexNet, VGG) a block ends at
    a MaxPool and convolutions are counted inside it: `block1_conv1, block1_relu1, …, block5_pool`; Linears are
    `fc1, fc2, …`. In any other network a layer is spoken of by its module's path. Everywhere `conv_1, conv_2, …`
    (counted through the network) and the module's path are accepted as well.
    """
    chain = _chain(network)
    chained = {path for path, _ in chain}
    named = dict(_chain_names(chain))
    counts = {"conv": 0, "linear": 0}
    channels: int | None = None
    layers: dict[str, Layer] = {}
    for path, module in network.named_modules():
        if not path:
            continue
        kind = kind_of(module)
        own = getattr(module, "out_channels", None) or getattr(module, "out_features", None)
        channels = own if own is not None else channels
        aliases = [path]
        if kind in counts:
            counts[kind] += 1
        if kind == "conv":
            aliases.append(f"conv_{counts['conv']}")
        name = named.get(path, f"fc{counts['linear']}" if chain and kind == "linear" else path)
        layers[name] = Layer(
            name=name,
            path=f"{prefix}{path}",
            kind=kind,
            num_channels=own if path not in chained else channels,
            aliases=tuple(alias for alias in aliases if alias != name),
        )
    return layers


def with_alias(layer: Layer, alias: str) -> Layer:
    """Return the layer with one more accepted name."""
    return replace(layer, aliases=(*layer.aliases, alias))


def find_layer(layers: Mapping[str, Layer], name: str) -> Layer:
    """Return the layer of that name or alias.

    Raises:
        UserError: there is none; the message lists the known names.
    """
    if name in layers:
        return layers[name]
    for layer in layers.values():
        if name in layer.aliases:
            return layer
    known = [layer.name for layer in layers.values() if layer.kind != "module"]
    raise UserError(f"unknown layer {name!r}; this network has {', '.join(known)}")


def convolutions(layers: Mapping[str, Layer]) -> list[str]:
    """Return the names of all convolutions, in the network's order."""
    return [layer.name for layer in layers.values() if layer.kind == "conv"]


def block_ends(layers: Mapping[str, Layer]) -> list[str]:
    """Return the names of the layers at which blocks end.

    These are the `blockN_pool`s of a chain; elsewhere the topmost modules that hold convolutions (`layer1 … layer4`
    of a ResNet); in a chain without pools its last convolution.
    """
    pools = [name for name in layers if name.startswith("block") and name.endswith("_pool")]
    if pools:
        return pools
    paths = [layer.path for layer in layers.values() if layer.kind == "conv"]
    if not paths:
        return []
    common = _common_parent(paths)
    below = {path[len(common) :].split(".")[0] for path in paths if "." in path[len(common) :]}
    ends = [
        name for name, layer in layers.items() if layer.path.startswith(common) and layer.path[len(common) :] in below
    ]
    return ends or convolutions(layers)[-1:]


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


def _common_parent(paths: list[str]) -> str:
    split = [path.split(".")[:-1] for path in paths]
    common: list[str] = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common) + "." if common else ""


def _chain(network: nn.Module) -> list[tuple[str, nn.Module]]:
    paths = [path for path, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    if not paths:
        return []
    parent = _common_parent(paths).rstrip(".")
    container = network.get_submodule(parent)
    leaves = list(_leaves(container, parent))
    if not all(isinstance(module, nn.Sequential) for module in _containers(container)):
        return []
    return leaves


def _containers(module: nn.Module) -> Iterator[nn.Module]:
    return (child for child in module.modules() if next(child.children(), None) is not None)


def _leaves(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        below = f"{path}.{name}" if path else name
        if next(child.children(), None) is None:
            yield below, child
        else:
            yield from _leaves(child, below)


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
