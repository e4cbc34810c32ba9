"""Average the weights over training, with Lightning's `WeightAveraging`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import pytorch_lightning as pl
from pydantic import Field
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor


class EMA(WeightAveraging):
    """Averages the weights exponentially after every optimizer step; validation, test and checkpoints use the average.

    Lightning's `EMAWeightAveraging` has the same decay from the first step on: after 160 steps, ten epochs of 1000
    images, .999 leaves 85 % of the average at the weights of the first step.

    Args:
        decay: the share of the average that remains at a step, at most: at step n it is (1 + n) / (10 + n) if that is
            less, so that the average reaches back over about a ninth of the steps until now.
    """

    def __init__(self, *, decay: Annotated[float, Field(ge=0, lt=1)] = 0.999) -> None:
        def average(averaged: Tensor, weights: Tensor, steps: Tensor) -> Tensor:
            kept = ((1 + steps) / (10 + steps)).clamp(max=decay)  # a tensor, which needs no wait for a GPU
            return averaged + (1 - kept) * (weights - averaged)  # frozen weights keep their bits

        super().__init__(avg_fn=average)


class SWA(WeightAveraging):
    """Averages the weights at the end of each of the last epochs; validation, test and checkpoints use the average.

    Lightning's `StochasticWeightAveraging` trains one epoch more and replaces the schedule, so a resumed run would not
    equal an uninterrupted one. Before averaging begins, the average is the weights themselves.

    Args:
        start: share of the epochs after which averaging begins.
    """

    def __init__(self, *, start: Annotated[float, Field(ge=0, lt=1)] = 0.75) -> None:
        super().__init__()
        self.start = start
        self._due = False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average after the last batch of an epoch, so that the epoch's validation sees it."""
        self._due = trainer.is_last_batch
        if trainer.current_epoch <= self.start * (trainer.max_epochs or 0) and self._average_model is not None:
            self._average_model.n_averaged.zero_()  # the next update copies the weights
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Return whether this was the last step of an epoch."""
        return step_idx is not None and self._due


@contextmanager
def averaged_weights(trainer: pl.Trainer, module: pl.LightningModule) -> Iterator[None]:
    """Put averaged weights, if there are any, into the module within the block, as Lightning does to validate."""
    callbacks: list[Any] = [callback for callback in trainer.callbacks if is_averaging(callback)]  # type: ignore[attr-defined]
    for callback in callbacks:
        callback.on_validation_epoch_start(trainer, module)
    try:
        yield
    finally:
        for callback in callbacks:
            callback.on_validation_epoch_end(trainer, module)


def is_averaging(callback: object) -> bool:
    """Return whether a callback averages the weights; `lightning.pytorch` has a class of its own for that."""
    return any(kind.__name__ == "WeightAveraging" for kind in type(callback).__mro__)
