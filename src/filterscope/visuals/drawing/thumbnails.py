"""Kernels and maps at their own size, a pixel per value: small enough to keep of every filter and every epoch."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from filterscope.analysis.filters import shared_patterns
from filterscope.visuals.drawing.pixels import Pixels
from filterscope.visuals.drawing.tiles import kernel, signed_maps


def small_kernels(weights: Tensor) -> tuple[Pixels, str]:
    """Return the kernels `(n, inputs, kh, kw)` as uint8 `(n, h, w, 3)`, and which way of drawing was taken.

    The ways are those of `filter_tiles`: `colour` and `grey` (the kernel itself), `shared` (the pattern that its inputs
    share most) and `points` (the weights of a 1×1 kernel, row by row in a square).
    """
    inputs, height, width = weights.shape[1:]
    longest = max(height, width)
    if inputs in (1, 3):
        return np.stack([kernel(w, longest) for w in weights]), "colour" if inputs == 3 else "grey"
    if height * width == 1:
        edge = math.ceil(math.sqrt(inputs))
        squares = F.pad(weights.flatten(1), (0, edge * edge - inputs)).reshape(-1, edge, edge)
        return signed_maps(squares, edge).rgb(), "points"
    return signed_maps(shared_patterns(weights)[0], longest).rgb(), "shared"


def small_maps(maps: Tensor, most: int) -> Tensor:
    """Return maps `(n, h, w)` as uint8 of at most `most` pixels a side: 128 is zero, each map is scaled by itself."""
    factor = max(max(maps.shape[1:]) / most, 1.0)
    height, width = (max(1, round(side / factor)) for side in maps.shape[1:])
    values = F.adaptive_avg_pool2d(maps.float().nan_to_num()[None], (height, width))[0]
    largest = values.abs().amax((1, 2), keepdim=True).clamp_min(1e-12)
    return (128 + 127 * values / largest).round().to(torch.uint8)


def coloured(maps: Tensor) -> Pixels:
    """Return what `small_maps` made, `(n, h, w)`, as `(n, h, w, 3)`: red positive, blue negative, white zero."""
    values = (maps.float() - 128) / 127
    return signed_maps(values, max(values.shape[1:]), largest=torch.ones(len(values))).rgb()
