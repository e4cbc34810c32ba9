"""Report the epochs of a run to the trial of a search that it belongs to, and end a trial that falls behind."""

import logging
from typing import Any

import pytorch_lightning as pl

log = logging.getLogger(__name__)

current: list[Any] = []
"""The Optuna trial that this process runs; empty outside a search."""


class ReportToTrial(pl.Callback):
    """Reports the monitored metric of each epoch, and stops the run if Optuna's pruner says so.

    Args:
        monitor: the metric that the search optimizes.
    """

    def __init__(self, *, monitor: str) -> None:
        super().__init__()
        self.monitor = monitor

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the epoch."""
        del pl_module
        value = trainer.callback_metrics.get(self.monitor)
        if not current or value is None:
            return
        trial = current[0]
        trial.report(float(value), trainer.current_epoch + 1)
        if trial.should_prune():
            log.info("trial %d is pruned after epoch %d", trial.number, trainer.current_epoch + 1)
            trial.set_user_attr("pruned", True)
            trainer.should_stop = True
