"""How the learning rate changes over a run; every parameter group scales alike."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR


def one_cycle(optimizer: Optimizer, *, total_steps: int, warmup: float = 0.3) -> LRScheduler:
    """Rise to the full rate over the first `warmup` share of the steps, then fall to almost nothing (Smith 2018)."""
    rates = [group["lr"] for group in optimizer.param_groups]
    return OneCycleLR(optimizer, max_lr=rates, total_steps=total_steps, pct_start=warmup)


def cosine(optimizer: Optimizer, *, total_steps: int, warmup: float = 0.05) -> LRScheduler:
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
