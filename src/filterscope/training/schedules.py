"""Learning rate schedules that a resumed run can extend; torch's own store their length and cannot be extended."""

import inspect
import math
from collections.abc import Callable
from typing import Annotated

from pydantic import Field
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from filterscope.errors import UserError, first_line

_MOST_TRIED = 1000
Share = Annotated[float, Field(ge=0, le=1)]


def takes_total_steps(schedule: Callable[..., LRScheduler]) -> bool:
    """Return whether a schedule, or a partial of it, has an argument `total_steps` that is not set yet."""
    given = getattr(schedule, "keywords", {}).get("total_steps")
    return given is None and "total_steps" in inspect.signature(schedule).parameters


def one_cycle(optimizer: Optimizer, *, total_steps: int, warmup: Share = 0.3) -> LRScheduler:
    """Raise the rate from 1/25 to its full value in the first `warmup` share of the steps, then lower it to 1/250,000.

    Both parts follow half a cosine, like torch's `OneCycleLR` (Smith 2018, with fastai's end points).
    """
    peak = max(1.0, warmup * total_steps - 1)

    def factor(step: int) -> float:
        if step <= peak:
            return _half_cosine(1 / 25, 1.0, step / peak)
        return _half_cosine(1.0, 4e-6, (step - peak) / max(1.0, total_steps - 1 - peak))

    return LambdaLR(optimizer, factor)


def cosine(optimizer: Optimizer, *, total_steps: int, warmup: Share = 0.05) -> LRScheduler:
    """Raise the rate linearly in the first `warmup` share of the steps, then lower it to zero along half a cosine."""
    rising = max(1, round(warmup * total_steps))

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return _half_cosine(1.0, 0.0, (step - rising) / max(1, total_steps - rising))

    return LambdaLR(optimizer, factor)


def constant(optimizer: Optimizer) -> LRScheduler:
    """Keep the rate."""
    return LambdaLR(optimizer, lambda _: 1.0)


def try_schedule(make: Callable[[], LRScheduler], stand_in: Optimizer, *, steps: int) -> None:
    """Advance a schedule of an optimizer that stands in for the real one: torch's do not check their options.

    Raises:
        UserError: the schedule fails, or a learning rate becomes negative or infinite.
    """
    try:
        schedule = make()
        for step in range(1, min(steps, _MOST_TRIED)):
            stand_in.step()
            schedule.step(1.0) if isinstance(schedule, ReduceLROnPlateau) else schedule.step()
            rates = [group["lr"] for group in stand_in.param_groups]
            if not all(0 <= rate < math.inf for rate in rates):
                raise UserError(
                    f"schedule: the learning rate becomes {max(rates, key=abs):g} after {step} steps of the schedule"
                )
    except Exception as error:  # of a class that the config names
        raise error if isinstance(error, UserError) else UserError(f"schedule: {first_line(error)}") from error


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
