"""What maps come to over all their places, fast: a batch of maps is far larger than a processor's cache."""

from collections.abc import Iterator
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

_MEAN, _RECTIFIED = "_filterscope_rectified_mean", "_filterscope_rectified"
_PIECE = 1 << 21  # numbers; fresh memory for more takes far longer, fewer leave threads nothing to share


def note_rectified(maps: Tensor, rectified: Tensor) -> None:
    """Note at maps what a ReLU made of them, so that `rectified_mean` need not rectify them again."""
    setattr(maps, _RECTIFIED, rectified)


def rectified_mean(maps: Tensor) -> Tensor:
    """Return the mean of what is positive in each of the maps, `(N, C, …)` → `(N, C)` float32.

    It is noted at the tensor, so that several who look at the same output of a layer have it computed once. Where a
    ReLU did the rectifying and puts out bfloat16, the mean of a map's row is one too: off by up to .2 %, a whole map's
    by less.
    """
    known: Tensor | None = getattr(maps, _MEAN, None)
    if known is None:
        rectified: Tensor | None = getattr(maps, _RECTIFIED, None)
        if rectified is not None:
            known = _mean(rectified.detach())
        else:
            known = torch.cat([_mean(some.relu_()) for some in _pieces(maps)])
        setattr(maps, _MEAN, known)
    return known


@lru_cache
def spread_positions(height: int, width: int, *, most: int) -> Tensor:
    """Return up to `most` positions of a map of this size, spread evenly over it, as indices of the flat map."""
    if height * width <= most:
        return torch.arange(height * width)
    # Evenly in one direction and by the golden ratio in the other, so that no row or column is met more than others.
    steps = torch.arange(most, dtype=torch.float64)
    down, across = (steps + 0.5) / most * height, (steps + 0.5) * (5**0.5 - 1) / 2 % 1 * width
    return down.long() * width + across.long()


def _pieces(maps: Tensor) -> Iterator[Tensor]:
    """Yield float32 copies of a few images' maps at a time."""
    count = max(1, _PIECE // maps[0].numel()) if maps.device.type == "cpu" else len(maps)
    for some in torch.split(maps.detach(), count):
        yield some.to(torch.float32, copy=True)


def _mean(maps: Tensor) -> Tensor:
    if maps.device.type == "cpu" and maps.dim() == 4 and maps.is_contiguous(memory_format=torch.channels_last):
        # Pooling adds up whole rows of channels, images side by side; `mean` goes from channel to channel.
        return F.avg_pool2d(maps, (1, maps.shape[3])).flatten(2).mean(dim=2, dtype=torch.float32)
    return maps.flatten(2).mean(dim=2, dtype=torch.float32)
