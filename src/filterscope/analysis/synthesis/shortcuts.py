"""Cheaper ways to the same numbers: a strided convolution as a dense one, and one output channel for each picture."""

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_FEW = 4  # channels, as an image has; more are summed up pixel by pixel, where they lie side by side
_LARGE = 2**15  # pixels of one map of the whole micro-batch; smaller ones `F.fold` adds faster


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
        return F.conv2d(self.folded(images.to(self.weight.dtype)), self.weight, self.bias)

    def folded(self, images: Tensor) -> Tensor:
        """Return `(N, C, H, W)` as `(N, C·stride², h, w)`, padded to just what the convolution reads."""
        s, before = self.stride, self.padding
        height, width = images.shape[2:]
        rows, columns = ((side + 2 * before - self.kernel) // s + self.blocks for side in (height, width))
        padded = F.pad(images, (before, columns * s - width - before, before, rows * s - height - before))
        return cast(Tensor, _Folded.apply(padded, s)).permute(0, 3, 1, 2)


class _Folded(torch.autograd.Function):
    """Images `(N, C, h·s, w·s)` → `(N, h, w, C·s²)`: runs of `s` numbers stay together, and are moved as one."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, s: int) -> Tensor:
        """Return the folded images."""
        n, c, height, width = images.shape
        ctx.stride = s
        runs = _runs(images, s).view(n, c, height // s, s, width // s, -1)
        return _apart(runs.permute(0, 2, 4, 1, 3, 5), images.dtype).view(n, height // s, width // s, c * s**2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of the images."""
        (gradient,), s = gradients, ctx.stride
        n, h, w, k = gradient.shape
        runs = _runs(gradient, s).view(n, h, w, k // s**2, s, -1)
        return _apart(runs.permute(0, 3, 1, 4, 2, 5), gradient.dtype).view(n, k // s**2, h * s, w * s), None


def _runs(numbers: Tensor, length: int) -> Tensor:
    """Return numbers in a row, `length` of which are seen as one larger number, where there is such a type."""
    larger = {4: torch.int32, 8: torch.int64, 16: torch.complex128}.get(length * numbers.element_size())
    row = numbers.reshape(-1)
    return row if larger is None else row.view(larger)


def _apart(runs: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a copy of runs as the numbers they consist of, in a row."""
    return runs.clone(memory_format=torch.contiguous_format).view(-1).view(dtype)


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

    It is computed in the type of the inputs, whatever autocast says. The channels of the input are summed up first, for
    each place in the kernel by one matrix product; the few maps that are left are then shifted and added.
    """
    with torch.autocast(inputs.device.type, enabled=False):
        if isinstance(module, nn.Linear):
            own = torch.einsum("n...c,nc->n...", inputs, module.weight[channels].to(inputs.dtype))
            return (own + _bias(module.bias, channels, own)).unsqueeze(-1)
        if isinstance(module, SpaceToDepthConv):
            inputs, padding = module.folded(inputs), (0, 0)
        else:
            padding = cast("tuple[int, int]", cast(nn.Conv2d, module).padding)
        weight = cast(Tensor, module.weight)[channels].to(inputs.dtype)
        n, c, h, w = inputs.shape
        # Added at i + d is what a convolution reads there, hence the flip.
        taps = weight.flatten(2).flip(2)
        geometry = _Geometry(size=(h, w), kernel=(weight.shape[2], weight.shape[3]), padding=padding)
        if c <= _FEW:
            maps = _aligned(inputs.reshape(n, c, h * w), 2)
            own = cast(Tensor, _MapTaps.apply(maps, _aligned(taps.transpose(1, 2), 2)[:, :, :c], geometry))
        else:
            pixels = _aligned(inputs.permute(0, 2, 3, 1).reshape(n, h * w, c), 2)
            own = cast(Tensor, _PixelTaps.apply(pixels, _aligned(_aligned(taps, 1), 2), geometry))
        return own + _bias(cast("Tensor | None", module.bias), channels, own)


@dataclass(frozen=True, kw_only=True)
class _Geometry:
    """A convolution of stride 1: the size of its input, of its kernel, and the zeros around."""

    size: tuple[int, int]
    kernel: tuple[int, int]
    padding: tuple[int, int]

    @property
    def places(self) -> int:
        return self.kernel[0] * self.kernel[1]

    @property
    def cut(self) -> tuple[int, int]:
        """What the full sum of shifted maps has more than the output, on each side."""
        return self.kernel[0] - 1 - self.padding[0], self.kernel[1] - 1 - self.padding[1]

    def added(self, sums: Tensor) -> Tensor:
        """Return maps of all places `(N, places, h·w)`, each shifted by its place, as one sum `(N, 1, …)`."""
        (h, w), (rows, columns), (top, left) = self.size, self.kernel, self.cut
        if len(sums) * h * w < _LARGE:
            output = (h + rows - 1 - 2 * top, w + columns - 1 - 2 * left)
            return F.fold(sums, output, self.kernel, padding=self.cut)
        whole = sums.new_zeros(len(sums), h + rows - 1, w + columns - 1)
        for place, each in enumerate(sums.view(*sums.shape[:2], h, w).unbind(1)):
            row, column = divmod(place, columns)
            whole[:, row : row + h, column : column + w] += each
        return whole[:, None, top : whole.shape[1] - top, left : whole.shape[2] - left].contiguous()

    def spread(self, gradient: Tensor) -> Tensor:
        """Return the gradient `(N, 1, …)` of the sum as that of the maps of all places, `(N, places, h·w)`."""
        top, left = self.cut
        padded = F.pad(gradient[:, 0], (left, left, top, top))
        return padded.unfold(1, self.size[0], 1).unfold(2, self.size[1], 1).reshape(len(gradient), self.places, -1)


class _PixelTaps(torch.autograd.Function):
    """Pixels `(N, h·w, C)` and kernels `(N, C, places)` → maps `(N, 1, …)`; only pixels get a gradient."""

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, taps: Tensor, geometry: _Geometry) -> Tensor:
        """Return the sums over channels at every place of the kernel, shifted and added."""
        ctx.save_for_backward(taps)
        ctx.geometry = geometry
        return geometry.added(torch.bmm(taps.transpose(1, 2), pixels.transpose(1, 2))[:, : geometry.places])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of the pixels."""
        (taps,) = ctx.saved_tensors
        places = _aligned(ctx.geometry.spread(gradients[0]), 1)
        return torch.bmm(places.transpose(1, 2), taps.transpose(1, 2)), None, None


class _MapTaps(torch.autograd.Function):
    """Maps `(N, C, h·w)` and kernels `(N, places, C)` → maps `(N, 1, …)`; only the maps get a gradient."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, taps: Tensor, geometry: _Geometry) -> Tensor:
        """Return the sums over channels at every place of the kernel, shifted and added."""
        ctx.save_for_backward(taps)
        ctx.geometry = geometry
        pixels = geometry.size[0] * geometry.size[1]
        return geometry.added(torch.bmm(taps, maps)[:, :, :pixels])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of the maps."""
        (taps,) = ctx.saved_tensors
        places = _aligned(ctx.geometry.spread(gradients[0]), 2)
        return torch.bmm(taps.transpose(1, 2), places), None, None


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
