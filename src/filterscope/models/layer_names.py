"""Names for the layers of any network: one rule for plain chains, the module's own path elsewhere."""

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import takewhile

from torch import nn

from filterscope.models.layers import Layer, kind_of


def name_layers(network: nn.Module, shapes: Mapping[str, tuple[int, ...]], *, prefix: str = "") -> dict[str, Layer]:
    """Name the layers of a network in their order.

    In a plain chain (all convolutions in one run of nested `nn.Sequential`s of leaves: AlexNet, VGG) a block ends at
    a MaxPool and convolutions are counted inside it: `block1_conv1, block1_relu1, …, block5_pool`; Linears are
    `fc1, fc2, …`. In any other network a layer is spoken of by its module's path. Everywhere `conv_1, conv_2, …`
    (counted through the network) and the module's path are accepted as well.

    Args:
        network: any; a Linear that was exchanged for `nn.Identity` is no layer of it.
        shapes: `{path: output shape without the batch}` of the modules that run; others are left out.
        prefix: is prepended to every path.
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


def _num_channels(module: nn.Module, shape: tuple[int, ...]) -> int | None:
    own: int | None = getattr(module, "out_channels", None) or getattr(module, "out_features", None)
    return own or (shape[0] if len(shape) in (1, 3) else None)


def _chain(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the leaves of the innermost container of all convolutions, if the network nests only Sequentials."""
    modules = dict(network.named_modules())
    leaves = {path: module for path, module in modules.items() if next(module.children(), None) is None}
    parents = [path.split(".")[:-1] for path, module in leaves.items() if isinstance(module, nn.Conv2d)]
    if not all(path in leaves or path == "" or isinstance(modules[path], nn.Sequential) for path in modules):
        return []
    common = takewhile(lambda names: len(set(names)) == 1, zip(*parents, strict=False))
    parent = "".join(f"{names[0]}." for names in common)
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
