"""How the learning rate changes over a run; every parameter group scales alike."""

import math
from typing import Annotated, TypeAlias

from pydantic import Field
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]


def one_cycle(optimizer: Optimizer, *, total_steps: int, warmup: Share = 0.3) -> LRScheduler:
    """Rise from 1/25 to the full rate over the first `warmup` share of the steps, then fall to 1/250,000 of it.

    Both along half a cosine (Smith 2018, with fastai's ends). Unlike torch's `OneCycleLR` it keeps no length of its
    own, so that a run can be resumed with more epochs.
    """
    peak = max(1.0, warmup * total_steps - 1)

    def factor(step: int) -> float:
        if step <= peak:
            return _between(1 / 25, 1.0, step / peak)
        return _between(1.0, 4e-6, (step - peak) / max(1.0, total_steps - 1 - peak))

    return LambdaLR(optimizer, factor)


def cosine(optimizer: Optimizer, *, total_steps: int, warmup: Share = 0.05) -> LRScheduler:
    """Rise linearly over the first `warmup` share of the steps, then follow half a cosine down to zero."""
    rising = max(1, round(warmup * total_steps))

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total_steps - rising)))

    return LambdaLR(optimizer, factor)


def constant(optimizer: Optimizer, *, total_steps: int) -> LRScheduler:  # noqa: ARG001
    """Keep the rate."""
    return LambdaLR(optimizer, lambda _: 1.0)


def _between(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
