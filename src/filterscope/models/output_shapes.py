"""Find the output shapes of a network's modules with a copy on the meta device; nothing is computed."""

import copy
from collections import OrderedDict
from functools import partial

import torch
from torch import Tensor, nn

from filterscope.models.layers import hooks_of

Shape = tuple[int, ...]


def output_shapes(network: nn.Module, *, in_channels: int, image_size: int) -> dict[str, Shape] | None:
    """Return the output shape of every module that runs and outputs one tensor.

    Args:
        network: is not touched: only a copy without values runs.
        in_channels: of the images.
        image_size: height and width of the images in pixels.

    Returns:
        `{path: shape without the batch dimension}`, with the path `""` for the network itself; None if the network
        does not accept images of this size.
    """
    shapes: dict[str, Shape] = {}
    try:
        shadow = _copy_on_meta(network).eval()
        for path, module in shadow.named_modules():
            module.register_forward_hook(partial(_note_shape, shapes, path))
        dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
        with torch.no_grad():
            shadow(torch.empty(2, in_channels, image_size, image_size, device="meta", dtype=dtype))
    except (RuntimeError, ValueError, AssertionError):
        return None
    return shapes


def accepted_sizes(network: nn.Module, *, in_channels: int, largest: int = 640) -> tuple[int, int] | None:
    """Return the smallest and the largest accepted image size up to `largest`; None if the network accepts none."""

    def passes(size: int) -> bool:
        return output_shapes(network, in_channels=in_channels, image_size=size) is not None

    if not passes(largest):  # the network accepts few sizes only, for example a vision transformer
        accepted = [size for size in range(1, largest + 1) if passes(size)]
        return (accepted[0], accepted[-1]) if accepted else None
    low, high = 0, largest
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return high, largest


def _copy_on_meta(network: nn.Module) -> nn.Module:
    """Return a copy of a network whose tensors have shapes but no values; hooks are left out.

    `deepcopy` finds the replacement of every tensor in its memo, so modules and tensors that are shared stay shared
    and the network's own tensors are neither copied nor moved.
    """
    memo: dict[int, object] = {}
    for module in network.modules():
        memo |= {id(hooks): OrderedDict() for hooks in hooks_of(module)}
        attributes = [value for value in vars(module).values() if isinstance(value, Tensor)]  # of weight norm, pruning
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False), *attributes):
            empty = tensor.detach().to("meta")
            is_parameter = isinstance(tensor, nn.Parameter)
            memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
    return copy.deepcopy(network, memo)


def _note_shape(shapes: dict[str, Shape], path: str, _module: nn.Module, _inputs: object, output: object) -> None:
    if isinstance(output, Tensor):
        shapes[path] = tuple(output.shape[1:])
