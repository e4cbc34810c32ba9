"""The optimized parameters, Fourier coefficients or pixels, and the image in [0, 1] that they represent."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor

from filterscope.analysis.synthesis.recipe import Recipe

# Square root of the covariance of colours in ImageNet, scaled to the longest column (lucid, `color.py`).
_COLOUR = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
_COLOUR = _COLOUR / _COLOUR.norm(dim=0).max()


@dataclass(frozen=True, kw_only=True)
class Parameterization:
    """The mapping between parameters and images of `channels` colour channels.

    Parameters are `(N, channels, size, size // 2 + 1, 2)` coefficients or `(N, channels, size, size)` pixels.
    """

    recipe: Recipe
    channels: int

    @property
    def fourier(self) -> bool:
        """Whether the parameters are Fourier coefficients."""
        return self.recipe.parameterization == "fourier"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one picture's parameters."""
        size = self.recipe.size
        return (self.channels, size, size // 2 + 1, 2) if self.fourier else (self.channels, size, size)

    def draw(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Draw the initial parameters, those of each picture from its own generator."""
        if self.recipe.start == "uniform":
            size = (self.channels, self.recipe.size, self.recipe.size)
            uniform = torch.stack([torch.rand(size, generator=generator) for generator in generators])
            return self.parameters(uniform) if self.fourier or self.recipe.bounded else uniform
        return torch.stack([0.01 * torch.randn(self.shape, generator=generator) for generator in generators])

    def images(self, parameters: Tensor) -> Tensor:
        """Return the images that parameters represent; differentiable."""
        values = parameters
        if self.fourier:
            spectrum = torch.view_as_complex(parameters * _scale(self.recipe.size, parameters.device))
            values = torch.fft.irfft2(spectrum, s=(self.recipe.size,) * 2, norm="ortho")
        if self._decorrelates:
            values = _mix(_COLOUR, values)
        return cast(Tensor, _Sigmoid.apply(values)) if self.recipe.bounded else values

    def parameters(self, images: Tensor) -> Tensor:
        """Return the parameters that represent images `(N, channels, size, size)` in [0, 1]."""
        values = images.float()
        if self.recipe.bounded:
            values = torch.logit(values, eps=1e-3)
        if self._decorrelates:
            values = _mix(torch.linalg.inv(_COLOUR), values)
        if self.fourier:
            values = torch.view_as_real(torch.fft.rfft2(values, norm="ortho")) / _scale(self.recipe.size, values.device)
        return values

    @property
    def _decorrelates(self) -> bool:
        return self.recipe.decorrelate and self.channels == 3


class _Sigmoid(torch.autograd.Function):
    """The sigmoid, computed for each picture separately so that its bits do not depend on the others.

    Vectorized code rounds elements at the ends of vectors and of threads' shares differently.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        """Return the sigmoid of the values."""
        images = torch.empty_like(values, memory_format=torch.contiguous_format)
        for value, image in zip(values, images, strict=True):
            torch.sigmoid(value, out=image)
        ctx.save_for_backward(images)
        return images

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Return the gradient of the values."""
        (images,) = ctx.saved_tensors
        slope: Tensor = (1 - images).mul_(images)
        return slope.mul_(gradients[0])


def _mix(matrix: Tensor, values: Tensor) -> Tensor:
    return (matrix.to(values.device) @ values.flatten(2)).view_as(values)


@lru_cache(maxsize=8)
def _scale(size: int, device: torch.device) -> Tensor:
    """Return the 1/f spectrum of natural images, divided by 4 so that sigmoids do not start saturated, as in lucid."""
    rows = torch.fft.fftfreq(size, device=device)[:, None]
    columns = torch.fft.rfftfreq(size, device=device)[None, :]
    frequency = torch.sqrt(rows.square() + columns.square())
    return (1.0 / (4.0 * frequency.clamp_min(1.0 / size)))[..., None]


def stretch_contrast(images: Tensor) -> Tensor:
    """Return unbounded images for display, each scaled to fill [0, 1]."""
    flat = images.flatten(1)
    low, high = flat.min(dim=1).values, flat.max(dim=1).values
    span = (high - low).clamp_min(math.ulp(1.0))
    return (images - low[:, None, None, None]) / span[:, None, None, None]
