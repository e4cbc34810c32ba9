"""What shapes a network puts out at an image size, found on the meta device: nothing is computed."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

Shape = tuple[int, ...]


def output_shapes(network: nn.Module, *, in_channels: int, image_size: int) -> dict[str, Shape] | None:
    """Return `{path: output shape without the batch}` of the modules that run and put out one tensor.

    The network itself has the path `""`. None where images of `image_size` × `image_size` pixels cannot pass.
    """
    shapes: dict[str, Shape] = {}
    # A stand-in for every tensor leaves the network's own ones alone, and their device does not matter.
    shadow = {name: t.to("meta") for name, t in (*network.named_parameters(), *network.named_buffers())}
    images = torch.empty(2, in_channels, image_size, image_size, device="meta")
    flags = {module: module.training for module in network.modules()}
    handles = [module.register_forward_hook(partial(_note, shapes, path)) for path, module in network.named_modules()]
    try:
        network.eval()
        with torch.no_grad():
            functional_call(network, shadow, (images,))
    except (RuntimeError, ValueError, AssertionError):
        return None
    finally:
        for module, training in flags.items():
            module.training = training
        for handle in handles:
            handle.remove()
    return shapes


def accepted_sizes(network: nn.Module, *, in_channels: int, largest: int = 640) -> tuple[int, int] | None:
    """Return the smallest and the largest image size up to `largest` that can pass; None where none can."""

    def passes(size: int) -> bool:
        return output_shapes(network, in_channels=in_channels, image_size=size) is not None

    if not passes(largest):  # the network takes a few sizes only, such as one with a position for every patch
        taken = [size for size in range(1, largest + 1) if passes(size)]
        return (taken[0], taken[-1]) if taken else None
    low, high = 0, largest
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return high, largest


def _note(shapes: dict[str, Shape], path: str, _module: nn.Module, _inputs: object, output: object) -> None:
    if isinstance(output, Tensor):
        shapes[path] = tuple(output.shape[1:])
