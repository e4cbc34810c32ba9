"""What maps come to over all their places, fast: a batch of maps is far larger than a processor's cache."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

_PIECE = 1 << 21  # numbers; fresh memory for more takes ten times as long, fewer leave threads nothing to share


def pieces(maps: Tensor) -> Iterator[Tensor]:
    """Yield maps `(N, C, …)` as float32 copies, to be overwritten, of a few images at a time."""
    count = max(1, _PIECE // maps[0].numel()) if maps.device.type == "cpu" else len(maps)
    for some in torch.split(maps.detach(), count):
        yield some.to(torch.float32, copy=True)


def spatial_mean(maps: Tensor) -> Tensor:
    """Return the mean over the places of maps `(N, C, …)` → `(N, C)`."""
    if maps.device.type == "cpu" and maps.dim() == 4 and maps.is_contiguous(memory_format=torch.channels_last):
        # Pooling adds up whole rows of channels, images side by side; `mean` goes from channel to channel.
        return F.avg_pool2d(maps, maps.shape[2:]).flatten(1)
    return maps.flatten(2).mean(dim=2)


def rectified_mean(maps: Tensor) -> Tensor:
    """Return the mean of what is positive in each of the maps, `(N, C, …)` → `(N, C)` float32."""
    return torch.cat([spatial_mean(some.relu_()) for some in pieces(maps)])
