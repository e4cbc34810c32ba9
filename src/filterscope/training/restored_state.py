"""What a checkpoint has put back is of the kind that stood there: a damaged one is told before a step is spent."""

from typing import Any

import pytorch_lightning as pl
from torch import Tensor
from torch.optim import Optimizer


def check_restored(trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """Hold optimizer and schedule, once they have been restored, against ones that are built anew.

    Raises:
        ValueError: a value has another type or length than training computes with.
    """
    fresh: Any = module.configure_optimizers()
    (optimizer,), (schedule,) = trainer.optimizers, trainer.lr_scheduler_configs
    _alike(optimizer.state_dict()["param_groups"], fresh["optimizer"].state_dict()["param_groups"], "optimizer")
    _alike(schedule.scheduler.state_dict(), fresh["lr_scheduler"]["scheduler"].state_dict(), "schedule")
    check_moments(optimizer)


def check_moments(optimizer: Optimizer) -> None:
    """Check that what the optimizer remembers of each parameter fits it, and is the same for all.

    Raises:
        ValueError: it does not, or is not.
    """
    names = {frozenset(moments) for moments in optimizer.state.values() if moments}
    if len(names) > 1:
        raise ValueError("optimizer remembers more of some parameters than of others")
    for parameter, moments in optimizer.state.items():
        for name, moment in moments.items():
            if isinstance(moment, Tensor) and moment.dim() and moment.shape != parameter.shape:
                raise ValueError(f"optimizer.{name} has the shape {tuple(moment.shape)}, not {tuple(parameter.shape)}")
            if not isinstance(moment, Tensor | int | float | None):
                raise ValueError(f"optimizer.{name} is {moment!r:.60}")


def _alike(value: Any, pattern: Any, where: str) -> None:
    if isinstance(pattern, dict):
        fits = isinstance(value, dict) and value.keys() >= pattern.keys()
        if fits:
            for key, each in pattern.items():
                _alike(value[key], each, f"{where}.{key}")
    elif isinstance(pattern, list | tuple):
        fits = isinstance(value, list | tuple) and len(value) == len(pattern)
        if fits:
            for number, (one, other) in enumerate(zip(value, pattern, strict=True)):
                _alike(one, other, f"{where}.{number}")
    elif isinstance(pattern, Tensor):
        fits = isinstance(value, Tensor) and value.shape == pattern.shape
    elif isinstance(pattern, bool | str) or pattern is None:
        fits = pattern is None or isinstance(value, type(pattern))
    else:
        fits = not isinstance(pattern, int | float) or (isinstance(value, int | float) and not isinstance(value, bool))
    if not fits:
        raise ValueError(f"{where} is {value!r:.60}")
