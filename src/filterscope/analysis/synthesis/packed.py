"""A frozen convolution whose weights are laid out once as the processor's library wants them.

oneDNN multiplies blocks of weights, and lays the weights out in such blocks anew at every call, forwards and backwards.
Where maps are small and channels many that is much of the work.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from filterscope.analysis.synthesis.shortcuts import computes_own

_Packs = tuple[Tensor, Tensor]
_SHAPES = 2  # of images, for which weights are kept laid out


class PackedConv(nn.Module):
    """A convolution of stride 1, of which only the images get a gradient.

    `(N, C, H, W)` → the same as the convolution it was made from, to rounding; computed in the type of its weights.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.padding = cast("tuple[int, int]", conv.padding)
        self._packs: dict[torch.Size, _Packs] = {}

    def forward(self, images: Tensor, *, rectify: bool = False) -> Tensor:
        """Return the convolution's output, or what a ReLU makes of it, without another pass over the maps."""
        images = images.to(self.weight.dtype)
        if images.shape not in self._packs:
            if len(self._packs) == _SHAPES:  # as many layers as there may be, each with micro-batches of its own size
                self._packs.clear()
            self._packs[images.shape] = self._pack(images.shape)
        return cast(Tensor, _Packed.apply(images, self._packs[images.shape], self.bias, self.padding, rectify))

    def _pack(self, shape: torch.Size) -> _Packs:
        """Return the weights as images of this shape, and the gradients of what becomes of them, want them."""
        # The data gradient of such a convolution is one too, with every kernel turned about and channels swapped.
        weight = self.weight.detach()
        turned = weight.transpose(0, 1).flip(2, 3)
        sides = (size + 2 * p - k + 1 for size, p, k in zip(shape[2:], self.padding, weight.shape[2:], strict=True))
        outputs = (shape[0], len(weight), *sides)
        return _packed(weight, shape, self.padding), _packed(turned, outputs, _turned(self.padding, weight))


class _Packed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, images: Tensor, packs: _Packs, bias: Tensor | None, padding: tuple[int, int], rectifies: bool
    ) -> Tensor:
        """Return the convolution's output."""
        ctx.turned, ctx.padding, ctx.rectifies = packs[1], padding, rectifies
        output = _convolved(images, packs[0], bias, padding, then="relu" if rectifies else "none")
        if rectifies:
            ctx.save_for_backward(output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        """Return the gradient of the images."""
        gradient = gradients[0]
        if ctx.rectifies:
            gradient = torch.ops.aten.threshold_backward(gradient, *ctx.saved_tensors, 0)
        return _convolved(gradient, ctx.turned, None, _turned(ctx.padding, ctx.turned)), None, None, None, None


def packs(module: nn.Module, *, bf16: bool = False) -> bool:
    """Return whether `PackedConv` can stand in for a module, in bfloat16 or in the type that the module has."""
    library: Any = torch.backends.mkldnn
    return (
        isinstance(module, nn.Conv2d)
        and computes_own(module)
        and module.weight.device.type == "cpu"
        and module.weight.dtype == torch.float32
        and bool(library.is_available() and library.enabled)
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        and (not bf16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))
    )


def _packed(weight: Tensor, shape: tuple[int, ...], padding: tuple[int, int]) -> Tensor:
    library: Any = torch._C._nn
    packed: Tensor = library.mkldnn_reorder_conv2d_weight(
        weight.contiguous().to_mkldnn(), padding, (1, 1), (1, 1), 1, shape
    )
    return packed


def _turned(padding: tuple[int, int], weight: Tensor) -> tuple[int, int]:
    return weight.shape[2] - 1 - padding[0], weight.shape[3] - 1 - padding[1]


def _convolved(
    images: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int], *, then: str = "none"
) -> Tensor:
    output: Tensor = torch.ops.mkldnn._convolution_pointwise(
        images, weight, bias, padding, (1, 1), (1, 1), 1, then, [], ""
    )
    return output
