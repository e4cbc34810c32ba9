"""One row of metrics an epoch: to `metrics.csv`, to TensorBoard, under the same names and steps."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor
from torch.utils.tensorboard.summary import hparams

from filterscope.storage.atomic import synced_size, write_file

SPLITS = ("train", "val", "test")
EVENTS = "events.out.tfevents.*"


class RunTensorBoardLogger(TensorBoardLogger):
    """TensorBoard's event file straight in the run folder, and nothing beside it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(save_dir=folder, name="", version="", default_hp_metric=False)

    @rank_zero_only
    def save(self) -> None:
        """Flush the event file; the config already lies in the run folder as `.hydra/config.yaml`."""
        self.experiment.flush()

    @rank_zero_only
    def log_outcome(self, params: Mapping[str, str | int | float | bool], metrics: Mapping[str, float]) -> None:
        """Write the HParams entry; the metrics are those already logged as scalars under the same names."""
        for summary in hparams(dict(params), dict(metrics)):  # type: ignore[no-untyped-call]
            self.experiment.file_writer.add_summary(summary)
        self.save()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Flush, and leave the event file open: validation, training and test of one start share it."""
        del status
        self.experiment.flush()


class MetricsLog(pl.Callback):
    """Writes a row of metrics per finished epoch, and the loss of single steps.

    The step of a row is the number of finished epochs; 0 is a validation before training. Only `train/loss_step`
    counts optimizer steps. The rows are part of the checkpoint, so that a resumed run neither repeats nor misses one.
    """

    def __init__(self, folder: Path, *, every_steps: int = 20) -> None:
        super().__init__()
        self.path = folder / "metrics.csv"
        self.every_steps = every_steps
        self.rows: dict[int, dict[str, float]] = {}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the loss of a step now and then."""
        del pl_module, batch_idx
        if batch is not None and trainer.global_step % self.every_steps == 0 and trainer.logger:
            trainer.logger.log_metrics({"train/loss_step": float(outputs["loss"])}, step=trainer.global_step)

    def log_steps(self, trainer: pl.Trainer, losses: Tensor, *, first: int) -> None:
        """Log the losses of many steps, of which the `first` is a number of optimizer steps, now and then."""
        for step, loss in enumerate(losses.tolist(), start=first):
            if step % self.every_steps == 0 and trainer.logger:
                trainer.logger.log_metrics({"train/loss_step": loss}, step=step)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write row 0 after the validation before training."""
        del pl_module
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.write(trainer, 0)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the row of the epoch that has just ended."""
        del pl_module
        self.write(trainer, trainer.current_epoch + 1)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the test's metrics to the row of the last epoch."""
        del pl_module
        self.write(trainer, max(self.rows, default=0))

    def write(self, trainer: pl.Trainer, epoch: int) -> None:
        """Write what training, validation and test have measured as the row of an epoch."""
        measured = {
            name: float(value) for name, value in sorted(trainer.callback_metrics.items()) if _split(name) in SPLITS
        }
        self.add(trainer, measured, epoch=epoch)
        if trainer.is_global_zero and trainer.logger:
            trainer.logger.log_metrics(measured, step=epoch)

    def add(self, trainer: pl.Trainer, numbers: Mapping[str, float], *, epoch: int) -> None:
        """Add numbers to the row of an epoch in `metrics.csv`."""
        self.rows.setdefault(epoch, {}).update(numbers)
        if numbers and trainer.is_global_zero:
            write_rows(self.path, self.rows)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note how long the event files are, so that a resumed run can take back what came after the checkpoint."""
        del pl_module
        if not trainer.is_global_zero:
            return
        if isinstance(trainer.logger, RunTensorBoardLogger):
            trainer.logger.save()
        sizes = {path.name: synced_size(path) for path in self.path.parent.glob(EVENTS)}
        written = {"finished": max(self.rows, default=0), "events": sizes}
        checkpoint.setdefault("filterscope", {})["written"] = written

    def state_dict(self) -> dict[str, Any]:
        """Return the rows so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the rows so far."""
        self.rows = state_dict["rows"]


def write_rows(path: Path, rows: dict[int, dict[str, float]]) -> None:
    """Write the rows as CSV, complete or not at all."""
    columns = ["epoch", *sorted({name for row in rows.values() for name in row}, key=_column_order)]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for epoch, row in sorted(rows.items()):
        writer.writerow({"epoch": epoch, **{name: f"{value:.6g}" for name, value in row.items()}})
    write_file(path, text.getvalue().encode())


def _column_order(name: str) -> tuple[int, str]:
    split = _split(name)
    return (SPLITS.index(split) if split in SPLITS else len(SPLITS), name)


def _split(name: str) -> str:
    return name.split("/")[0]
