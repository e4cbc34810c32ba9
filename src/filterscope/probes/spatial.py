"""What maps come to over all their places, fast: a batch of maps is far larger than a processor's cache."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

_NOTE = "_filterscope_rectified_mean"
_PIECE = 1 << 21  # numbers; fresh memory for more takes far longer, fewer leave threads nothing to share


def rectified_mean(maps: Tensor) -> Tensor:
    """Return the mean of what is positive in each of the maps, `(N, C, …)` → `(N, C)` float32.

    It is noted at the tensor, so that several who look at the same output of a layer have it computed once.
    """
    known: Tensor | None = getattr(maps, _NOTE, None)
    if known is None:
        known = torch.cat([_mean(some.relu_()) for some in _pieces(maps)])
        setattr(maps, _NOTE, known)
    return known


def rectified_mean_and_count(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same, noted too, and how many values are positive in each of the maps, `(N, C)` float64."""
    means, counts, places = [], [], maps[0, 0].numel()
    for some in _pieces(maps):
        means.append(_mean(some.relu_()))
        counts.append((places * _mean(some.sign_())).round())
    setattr(maps, _NOTE, torch.cat(means))
    return rectified_mean(maps), torch.cat(counts).double()


def _pieces(maps: Tensor) -> Iterator[Tensor]:
    """Yield float32 copies of a few images' maps at a time."""
    count = max(1, _PIECE // maps[0].numel()) if maps.device.type == "cpu" else len(maps)
    for some in torch.split(maps.detach(), count):
        yield some.to(torch.float32, copy=True)


def _mean(maps: Tensor) -> Tensor:
    if maps.device.type == "cpu" and maps.dim() == 4 and maps.is_contiguous(memory_format=torch.channels_last):
        # Pooling adds up whole rows of channels, images side by side; `mean` goes from channel to channel.
        return F.avg_pool2d(maps, maps.shape[2:]).flatten(1)
    return maps.flatten(2).mean(dim=2)
