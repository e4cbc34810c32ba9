"""Cheaper ways to the same numbers: a strided convolution as a dense one, and one output channel for each picture."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SpaceToDepthConv(nn.Module):
    """A strided convolution as a stride-1 convolution of the image folded by its stride.

    The data gradient of a strided convolution with few input channels is slow; that of the folded one is not. `(N, C,
    H, W)` → the same as the convolution it was made from, to rounding.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.stride = conv.stride[0]
        self.kernel = conv.kernel_size[0]
        self.padding = cast("tuple[int, int]", conv.padding)[0]
        self.blocks = -(-self.kernel // self.stride)
        weight = fold_weight(conv.weight, self.stride)
        self.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last), requires_grad=False)
        self.bias = conv.bias

    def forward(self, images: Tensor) -> Tensor:
        """Return the convolution's output."""
        return F.conv2d(self.folded(images), self.weight, self.bias)

    def folded(self, images: Tensor) -> Tensor:
        """Return `(N, C, H, W)` as `(N, C·stride², h, w)`, padded to just what the convolution reads."""
        s, before = self.stride, self.padding
        n, c, height, width = images.shape
        rows, columns = ((side + 2 * before - self.kernel) // s + self.blocks for side in (height, width))
        padded = F.pad(images, (before, columns * s - width - before, before, rows * s - height - before))
        split = padded.reshape(n, c, rows, s, columns, s).permute(0, 2, 4, 1, 3, 5)
        return split.reshape(n, rows, columns, c * s * s).permute(0, 3, 1, 2)


def fold_weight(weight: Tensor, stride: int) -> Tensor:
    """Return `(K, C, k, k)` as `(K, C·stride², b, b)`, zeros added where `stride` does not divide `k`."""
    blocks = -(-weight.shape[2] // stride)
    extra = blocks * stride - weight.shape[2]
    split = F.pad(weight, (0, extra, 0, extra)).reshape(*weight.shape[:2], blocks, stride, blocks, stride)
    return split.permute(0, 1, 3, 5, 2, 4).reshape(len(weight), -1, blocks, blocks)


def folds(module: nn.Module) -> bool:
    """Return whether a module is a strided convolution of few channels, which folding makes faster."""
    return (
        _plain(module)
        and isinstance(module, nn.Conv2d)
        and module.stride[0] == module.stride[1] > 1
        and module.kernel_size[0] == module.kernel_size[1] >= module.stride[0]
        and module.in_channels <= 4
    )


def computes_own(module: nn.Module) -> bool:
    """Return whether `own_channel` can stand in for the module."""
    if isinstance(module, nn.Linear | SpaceToDepthConv):
        return True
    if not (_plain(module) and isinstance(module, nn.Conv2d)):
        return False
    padding = cast("tuple[int, int]", module.padding)
    return module.stride == (1, 1) and all(p < k for p, k in zip(padding, module.kernel_size, strict=True))


def own_channel(module: nn.Module, inputs: Tensor, channels: Tensor) -> Tensor:
    """Return only output channel `channels[i]` of picture `i`, `(N, 1, h, w)`, or `(N, 1)` of a Linear.

    The channels of the input are summed up first, for each place in the kernel by one matrix product; the few maps
    that are left are then shifted and added.
    """
    if isinstance(module, nn.Linear):
        own = torch.einsum("n...c,nc->n...", inputs, module.weight[channels].to(inputs.dtype))
        return (own + _bias(module.bias, channels, own)).unsqueeze(-1)
    if isinstance(module, SpaceToDepthConv):
        inputs, padding = module.folded(inputs), (0, 0)
    else:
        padding = cast("tuple[int, int]", cast(nn.Conv2d, module).padding)
    weight = cast(Tensor, module.weight)[channels].to(inputs.dtype)
    n, c, h, w = inputs.shape
    pixels = _aligned(inputs.permute(0, 2, 3, 1).reshape(n, h * w, c), 2)
    own = cast(Tensor, _Taps.apply(pixels, _aligned(weight.flatten(2), 1), (h, w), weight.shape[2:], padding))
    return own + _bias(cast("Tensor | None", module.bias), channels, own)


class _Taps(torch.autograd.Function):
    """Pixels `(N, h·w, C)` and kernels `(N, C, kh·kw)` → maps `(N, 1, …)`; only pixels get a gradient."""

    @staticmethod
    def forward(
        ctx: Any, pixels: Tensor, taps: Tensor, size: tuple[int, int], kernel: tuple[int, int], padding: tuple[int, int]
    ) -> Tensor:
        """Return the sums over channels at every place of the kernel, shifted and added."""
        # F.fold adds at i + d what a convolution reads there, hence the flip.
        flipped = _aligned(taps.flip(2), 2)
        ctx.save_for_backward(flipped)
        ctx.kernel, ctx.places = kernel, kernel[0] * kernel[1]
        ctx.padding = (kernel[0] - 1 - padding[0], kernel[1] - 1 - padding[1])
        output = (size[0] - kernel[0] + 1 + 2 * padding[0], size[1] - kernel[1] + 1 + 2 * padding[1])
        sums = torch.bmm(flipped.transpose(1, 2), pixels.transpose(1, 2))
        return F.fold(sums[:, : ctx.places], output, kernel, padding=ctx.padding)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        """Return the gradient of the pixels."""
        (flipped,) = ctx.saved_tensors
        places = _aligned(F.unfold(gradients[0], ctx.kernel, padding=ctx.padding), 1)
        return torch.bmm(places.transpose(1, 2), flipped.transpose(1, 2)), None, None, None, None


def _bias(bias: Tensor | None, channels: Tensor, like: Tensor) -> Tensor | float:
    if bias is None:
        return 0.0
    return bias[channels].to(like.dtype).view(-1, *[1] * (like.dim() - 1))


def _aligned(matrices: Tensor, dim: int) -> Tensor:
    # A matrix product's bits depend on where its rows begin in a cache line, so every picture's must begin alike.
    lacking = -matrices.shape[dim] % (64 // matrices.element_size())
    return F.pad(matrices, (0, 0) * (2 - dim) + (0, lacking)) if lacking else matrices


def _plain(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and type(module) is nn.Conv2d
        and module.groups == 1
        and module.dilation == (1, 1)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and module.padding[0] == module.padding[1]
    )
