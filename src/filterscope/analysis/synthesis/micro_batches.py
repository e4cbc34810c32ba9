"""Micro-batches: which pictures ascend together, and how many fit."""

from collections.abc import Sequence

import torch
from torch import Tensor

from filterscope.analysis.synthesis.network import ForwardProfile
from filterscope.analysis.synthesis.optimize import in_bf16
from filterscope.analysis.synthesis.parameterization import Parameterization
from filterscope.analysis.synthesis.recipe import Recipe
from filterscope.errors import UserError

_MOST_TOGETHER = 16
_CACHED = 5 * 2**19  # numbers in one activation of the whole micro-batch; beyond, convolutions wait for memory


def micro_batch_size(reach: ForwardProfile, recipe: Recipe, device: torch.device, pictures: int) -> int:
    """Return how many pictures ascend together: what the recipe's memory holds, on a CPU what its cache holds.

    Args:
        reach: what one picture makes on the way to the layer.
        recipe: whose `memory` and precision count.
        device: where the network lies.
        pictures: how many there are in all; the batch is no larger.

    Raises:
        UserError: there is no memory for a single one.
    """
    width = 2 if in_bf16(recipe, device) else 4
    needed = 2 * width * reach.elements  # every activation and its gradient
    fits = int(recipe.memory * 2**30 / needed)
    if fits < 1:
        raise UserError(
            f"one picture needs {needed / 2**30:.2g} GiB for activations, recipe.memory is {recipe.memory:g}; "
            "choose a smaller recipe.size or more memory"
        )
    useful = _MOST_TOGETHER if device.type != "cpu" else max(1, _CACHED // reach.largest)
    most = max(1, min(fits, useful, _MOST_TOGETHER, pictures))
    return -(-pictures // -(-pictures // most))  # no fewer batches, but full ones


def split_channels(channels: Sequence[int], count: int, *, by_channel: bool = False) -> list[list[int]]:
    """Return the places in `channels` that ascend together: `count` at a time, or all pictures of one channel."""
    if by_channel:
        return [[i for i, other in enumerate(channels) if other == channel] for channel in dict.fromkeys(channels)]
    return [list(range(i, min(i + count, len(channels)))) for i in range(0, len(channels), count)]


def samples_per_channel(channels: Sequence[int]) -> list[int]:
    """Return for each picture how many of the same channel come before it."""
    seen: dict[int, int] = {}
    faces = []
    for channel in channels:
        faces.append(seen.get(channel, 0))
        seen[channel] = faces[-1] + 1
    return faces


def check_channels(
    channels: Sequence[int], start: Tensor | None, *, layer: str, count: int, parameterisation: Parameterization
) -> None:
    """Raise a `UserError` for channels beyond the `count` that a layer has, and for a start of another shape."""
    wrong = [channel for channel in channels if not 0 <= channel < count]
    if wrong:
        raise UserError(f"channel {wrong[0]} of {layer} does not exist; it has 0 to {count - 1}")
    if not channels:
        raise UserError(f"no channels of {layer} to synthesize; it has 0 to {count - 1}")
    shape = (len(channels), *parameterisation.shape)
    if start is not None and tuple(start.shape) != shape:
        raise UserError(f"a start of shape {tuple(start.shape)} does not fit; this recipe's has {shape}")
