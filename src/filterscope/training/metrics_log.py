"""Metrics per epoch in `metrics.csv`, in every logger and in the progress bar, under the same names and numbers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar

from filterscope.errors import UserError, suggestion
from filterscope.storage.atomic import synced_size, write_file
from filterscope.training.loggers import EVENTS, log_numbers
from filterscope.visuals.output.outputs import Row, Table
from filterscope.visuals.output.tables import table_csv

SPLITS = ("train", "val", "test")
Kind = TypeVar("Kind", bound=pl.Callback)


class NotesValidation(pl.Callback):
    """Knows whether the running epoch was validated; not every one is (`check_val_every_n_epoch`, `max_steps`)."""

    validated = False

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the validation of the epoch before."""
        self.validated = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note that this epoch was validated."""
        self.validated = not trainer.sanity_checking


class MetricsLog(NotesValidation):
    """Write one row of metrics per finished epoch, and the loss of single steps.

    The step of a row is the number of finished epochs; 0 is the validation before training. Only `train/loss_step`
    counts optimizer steps, and is logged every `trainer.log_every_n_steps` of them. The rows are part of the
    checkpoint, so that a resumed run neither repeats nor misses one; Lightning's `CSVLogger` knows none of this.

    Args:
        folder: the run folder, in which `metrics.csv` is written.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = folder / "metrics.csv"
        self.rows: dict[int, dict[str, float]] = {}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the loss of a step if one is due."""
        accumulated, every = trainer.accumulate_grad_batches, trainer.log_every_n_steps  # type: ignore[attr-defined]
        stepped = (batch_idx + 1) % accumulated == 0 or trainer.is_last_batch
        if every and stepped and trainer.global_step % every == 0:
            # Lightning has divided the loss by the number of accumulated batches.
            loss = float(outputs["loss"]) * accumulated
            for logger in trainer.loggers if trainer.is_global_zero else ():
                logger.log_metrics({"train/loss_step": loss}, step=trainer.global_step)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write row 0 after the validation before training."""
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == "validate":
            self.write(trainer, 0)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the row of the epoch that has just ended."""
        self.write(trainer, trainer.current_epoch + 1)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the test metrics to the row of the last epoch."""
        self.write(trainer, max(self.rows, default=0))

    def write(self, trainer: pl.Trainer, epoch: int) -> None:
        """Write the metrics of training, validation and test as the row of an epoch."""
        splits = SPLITS if self.validated else ("train", "test")
        measured = {
            name: float(value) for name, value in sorted(trainer.callback_metrics.items()) if _split(name) in splits
        }
        self.add(trainer, measured, epoch=epoch)
        if trainer.is_global_zero:
            log_numbers(trainer, measured, epoch=epoch)

    def add(self, trainer: pl.Trainer, numbers: Mapping[str, float], *, epoch: int) -> None:
        """Add numbers to the row of an epoch in `metrics.csv`."""
        self.rows.setdefault(epoch, {}).update(numbers)
        if numbers and trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            write_rows(self.path, self.rows)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Store the lengths of the event files, so that a resumed run can cut off later events."""
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            logger.save()
        sizes = {path.name: synced_size(path) for path in self.path.parent.glob(EVENTS)}
        written = {"finished": max(self.rows, default=0), "events": sizes}
        checkpoint.setdefault("filterscope", {})["written"] = written

    def state_dict(self) -> dict[str, Any]:
        """Return the rows."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the rows."""
        self.rows = state_dict["rows"]


class EpochProgressBar(RichProgressBar):
    """Rich's progress bar, one line per epoch, numbered like pictures and metrics: the first epoch is epoch 1."""

    def __init__(self) -> None:
        super().__init__(leave=True)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the bar of the epoch."""
        super().on_train_epoch_start(trainer, pl_module)
        if self.progress is not None and self.train_progress_bar_id is not None:
            label = f"Epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            # As wide as the validation bar's label: lines of different width flicker.
            self.progress.update(self.train_progress_bar_id, description=f"{label:{len(self.validation_description)}}")


def find_callback(trainer: pl.Trainer, kind: type[Kind]) -> Kind | None:
    """Return the trainer's first callback of a class, or None."""
    return next((each for each in trainer.callbacks if isinstance(each, kind)), None)  # type: ignore[attr-defined]


def monitored(known: Mapping[str, Any], name: str, *, option: str) -> float:
    """Return the metric of a name that an option gave; one that is not among the known metrics is a `UserError`."""
    if name in known:
        return float(known[name])
    similar = [each for each in known if _split(each) == _split(name)]
    measured = ", ".join(sorted(similar or known)) or "nothing yet"
    hint = " (needs visuals.health.by_layer=true)" if name.startswith("health/") else suggestion(name, known)
    raise UserError(f"{option}={name!r} is not measured{hint}; measured are {measured}")


def write_rows(path: Path, rows: dict[int, dict[str, float]]) -> None:
    """Write the rows as CSV; the file is replaced when it is complete."""
    names = sorted({name for row in rows.values() for name in row}, key=metric_order)
    cells: list[Row] = [
        (epoch, *(f"{row[name]:.6g}" if name in row else "" for name in names)) for epoch, row in sorted(rows.items())
    ]
    write_file(path, table_csv(Table(columns=("epoch", *names), rows=tuple(cells))).encode())


def metric_order(name: str) -> tuple[int, str]:
    """Return the key by which metrics are sorted: those of training, validation, test, and then others by name."""
    split = _split(name)
    return (SPLITS.index(split) if split in SPLITS else len(SPLITS), name)


def _split(name: str) -> str:
    return name.split("/")[0]
