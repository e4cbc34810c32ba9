"""Going on with a run: from which checkpoint, and with everything taken back that was written after it."""

import os
import re
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from filterscope.errors import UserError
from filterscope.storage.atomic import remove_partial_files
from filterscope.training.checkpoints import load_training_checkpoint
from filterscope.training.loggers import EVENTS
from filterscope.training.restored_state import check_restored

_EPOCH = re.compile(r"epoch_(\d+)\.(png|csv|npz)")


def find_resume_checkpoint(folder: Path, trainer: pl.Trainer) -> Path | None:
    """Return the checkpoint of a run folder to go on from: the one inside an epoch, else the last finished epoch's.

    None: there is none yet, the run starts over. The one inside an epoch counts only for as many processes as wrote
    it, because each of them had read its own part of the images.

    Raises:
        UserError: the checkpoint is damaged, or the run has more epochs behind it than `trainer.max_epochs`.
    """
    midway, last = folder / "checkpoints" / "midway.ckpt", folder / "checkpoints" / "last.ckpt"
    if midway.is_file() and _fits(load_training_checkpoint(midway, mmap=True), trainer):
        return midway
    if not last.is_file():
        return None
    finished = _written(load_training_checkpoint(last, mmap=True))[0]
    limit = trainer.max_epochs
    if limit is not None and finished is not None and -1 < limit < finished:
        raise UserError(f"{last} has {finished} epochs behind it, trainer.max_epochs={limit} is fewer")
    return last


def resume_conditions(trainer: pl.Trainer) -> dict[str, int | float | None]:
    """Say what must be the same when a run goes on inside an epoch."""
    return {
        "processes": trainer.world_size,
        "accumulate": trainer.accumulate_grad_batches,
        "limit": trainer.limit_train_batches,
    }


def remove_later_outputs(folder: Path, checkpoint: Path | None) -> None:
    """Take back what was written to a run folder after a checkpoint; None: all of it, the run starts over.

    Event files are cut to the length they had, pictures and tables of later epochs removed, so that each epoch stands
    once in all of them when it has been repeated.
    """
    finished, sizes = _written(load_training_checkpoint(checkpoint, mmap=True)) if checkpoint else (-1, {})
    if finished is None:
        return
    remove_partial_files(folder)
    for path in folder.glob(EVENTS):
        size = sizes.get(path.name, 0)
        if size <= 0:
            path.unlink()
        elif path.stat().st_size > size:
            os.truncate(path, size)
    for path in folder.rglob("epoch_*.*"):
        found = _EPOCH.fullmatch(path.name)
        if found and int(found[1]) > finished:
            path.unlink()
    if checkpoint is None:
        (folder / "metrics.csv").unlink(missing_ok=True)


def resume_training(
    trainer: pl.Trainer, module: pl.LightningModule, data: pl.LightningDataModule, checkpoint: Path
) -> None:
    """Train from a checkpoint on.

    Raises:
        UserError: the checkpoint is not of this run's network, optimizer or loops.
    """
    begun = _Begun()
    trainer.callbacks.insert(0, begun)  # type: ignore[attr-defined]
    try:
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    except (LookupError, TypeError, ValueError, AttributeError, AssertionError, RuntimeError) as error:
        if begun.begun or isinstance(error, UserError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{checkpoint} does not fit its run: {type(error).__name__}: {reason}") from error
    finally:
        trainer.callbacks.remove(begun)  # type: ignore[attr-defined]


class _Begun(pl.Callback):
    """Knows whether training has begun, all restored as it must be: what fails before is the checkpoint's fault."""

    begun = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        check_restored(trainer, pl_module)
        self.begun = True


def _fits(content: dict[str, Any], trainer: pl.Trainer) -> bool:
    midway = content["filterscope"].get("midway")
    return isinstance(midway, dict) and bool(midway.get("shape") == resume_conditions(trainer))


def _written(content: dict[str, Any]) -> tuple[int | None, dict[str, int]]:
    """Return how many epochs a checkpoint has behind it and how long the event files were, None if it does not say."""
    written = content["filterscope"].get("written")
    if not isinstance(written, dict):
        return None, {}
    try:
        return int(written["finished"]), {str(name): int(size) for name, size in written["events"].items()}
    except (LookupError, TypeError, ValueError, AttributeError):
        return None, {}
