"""Shift, scale and rotation in one resampling, so that a picture does not live from single pixels."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from filterscope.analysis.synthesis.recipe import Recipe


def draw_warps(recipe: Recipe, generators: Sequence[torch.Generator]) -> Tensor:
    """Draw the affine maps of all steps, `(steps, N, 2, 3)` for `warp`, each picture's from its own generator."""
    draws = torch.stack([2 * torch.rand(recipe.steps, 4, generator=g) - 1 for g in generators], dim=1)
    angle = draws[..., 0] * math.radians(recipe.rotate)
    scale = 1 + draws[..., 1] * recipe.scale
    shift = draws[..., 2:] * (2 * recipe.jitter / recipe.size)
    cos, sin = angle.cos() / scale, angle.sin() / scale
    return torch.stack(
        [torch.stack([cos, -sin, shift[..., 0]], -1), torch.stack([sin, cos, shift[..., 1]], -1)], dim=-2
    )


def warp(images: Tensor, affine: Tensor) -> Tensor:
    """Resample images by affine maps `(N, 2, 3)`; what lies outside is the image mirrored at its edge."""
    side = images.shape[-1]
    centres = (2 * torch.arange(side, device=images.device) + 1) / side - 1
    columns = affine[:, None, None, :, 0] * centres[:, None]
    rows = affine[:, None, None, :, 1] * centres[:, None, None] + affine[:, None, None, :, 2]
    grid = columns + rows
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
