"""Report the epochs of a run to the trial of a search that it belongs to, and end a trial that falls behind."""

import logging
from typing import Any

import pytorch_lightning as pl

from filterscope.training.metrics_log import MetricsLog, find_callback, monitored

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
        """Report the epoch, unless it ended without the validation that measures the metric.

        Raises:
            UserError: nothing measures the metric.
        """
        if not current:
            return
        metrics_log = find_callback(trainer, MetricsLog)
        row = metrics_log.rows.get(trainer.current_epoch + 1, {}) if metrics_log else {}
        if self.monitor.startswith("val/") and not any(name.startswith("val/") for name in row):
            return
        value = monitored(trainer.callback_metrics | row, self.monitor, option="callbacks.trial.monitor")
        trial = current[0]
        trial.report(value, trainer.current_epoch + 1)
        if trial.should_prune():
            log.info("trial %d is pruned after epoch %d", trial.number, trainer.current_epoch + 1)
            trial.set_user_attr("pruned", True)
            trainer.should_stop = True
