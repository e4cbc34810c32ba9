"""ReLUs that cost no pass over the maps of their own: inside the convolution before them, or behind the pooling after.

Where convolutions are fast, reading and writing maps for each ReLU takes as long as they do.
"""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from filterscope.analysis.synthesis.packed import PackedConv

Step = Callable[[Tensor], Tensor]
Plans = Mapping[nn.Sequential, Sequence[Step]]


def plans_for(network: nn.Module, *, kept: Collection[nn.Module]) -> Plans:
    """Return for each `nn.Sequential` that can do with fewer passes over its maps the steps to take instead.

    A ReLU right behind a `PackedConv` is left to the convolution; but where max pooling comes next, it is taken of the
    fewer numbers that are left (of rectified numbers the largest is the largest one, rectified). The modules `kept`
    put out what they always do.
    """
    plans = {each: _plan(list(each), kept) for each in network.modules() if type(each) is nn.Sequential}
    return {sequential: steps for sequential, steps in plans.items() if len(steps) < len(sequential)}


@contextlib.contextmanager
def following(plans: Plans) -> Iterator[None]:
    """Let sequentials take the planned steps while the block runs."""
    try:
        for sequential, steps in plans.items():
            sequential.forward = partial(_take, steps)  # type: ignore[method-assign]
        yield
    finally:
        for sequential in plans:
            vars(sequential).pop("forward", None)


def _plan(modules: Sequence[nn.Module], kept: Collection[nn.Module]) -> list[Step]:
    steps: list[Step] = []
    place = 0
    while place < len(modules):
        conv, relu, pool = (modules[i] if i < len(modules) else None for i in range(place, place + 3))
        if not isinstance(conv, PackedConv) or type(relu) is not nn.ReLU or conv in kept or relu in kept:
            steps.append(modules[place])
            place += 1
        elif type(pool) is nn.MaxPool2d and not pool.return_indices and pool not in kept:
            steps.append(partial(_pooled, conv, pool))
            place += 3
        else:
            steps.append(partial(conv, rectify=True))
            place += 2
    return steps


def _pooled(conv: PackedConv, pool: nn.MaxPool2d, images: Tensor) -> Tensor:
    return F.relu(pool(conv(images)))


def _take(steps: Sequence[Step], maps: Tensor) -> Tensor:
    for step in steps:
        maps = step(maps)
    return maps
