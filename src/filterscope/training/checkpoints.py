"""Checkpoints of a run, `best.ckpt` and `last.ckpt`: each is written completely or not at all, and synced."""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Literal

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import CheckpointIO
from pytorch_lightning.callbacks import Checkpoint

from filterscope.errors import UserError
from filterscope.storage.atomic import PARTIAL, atomic_write, remove_partial_files, sync_folder
from filterscope.storage.safe_load import LOAD_ERRORS, load_error_reason, load_plain
from filterscope.training.metrics_log import NotesValidation, monitored

_TRAINING_KEYS = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", "filterscope")
_NOT_FOR_INFERENCE = ("optimizer_states", "callbacks", "loops")


class AtomicCheckpointIO(CheckpointIO):
    """Writes a checkpoint to a temporary file in the same folder, syncs it and renames it; reads plain data only.

    Lightning's own writes to the system's temporary folder and never syncs, so that a crash can leave half a file
    under the real name (Lightning #19970).
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write the checkpoint; an old file of that name stays until the new one is complete.

        Args:
            checkpoint: the content.
            path: of the file.
            storage_options: `{"for_inference": other_path}` also writes the content without the optimizer's state, at
                the same time, because most of the work is a checksum on one core. Both files become complete, or none.
        """
        contents = {Path(path): checkpoint}
        if storage_options:
            weights = {key: value for key, value in checkpoint.items() if key not in _NOT_FOR_INFERENCE}
            contents[Path(storage_options["for_inference"])] = weights
        with ExitStack() as stack, ThreadPoolExecutor(max_workers=len(contents)) as pool:
            # Renamed in reverse order: when the whole checkpoint is there, so is the one for inference.
            files = [stack.enter_context(atomic_write(file, sync=True)) for file in contents]
            list(pool.map(_write, contents.values(), files))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a checkpoint; nothing in it is executed."""
        return load_checkpoint(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint."""
        Path(path).unlink(missing_ok=True)


class RunCheckpoints(NotesValidation, Checkpoint):
    """Writes `last.ckpt` after every epoch, and `best.ckpt` if the monitored metric is the best so far.

    `last.ckpt` holds everything that a resumed run needs, and so does `midway.ckpt`, which `Preemption` asks for inside
    an epoch. `best.ckpt` holds weights, config and the state of the visuals, without the optimizer.

    Not a `ModelCheckpoint`, which writes the optimizer's state twice (two thirds of the bytes), one file after the
    other, and fails in epochs without the monitored metric. Until an epoch is measured, the last one is the best.

    Args:
        folder: the run folder; checkpoints are written to `checkpoints` below it.
        monitor: name of a metric or of a number of a visual; None: the last epoch is the best.
        mode: `max` or `min`, whichever is better.
    """

    def __init__(self, folder: Path, *, monitor: str | None = "val/acc", mode: Literal["max", "min"] = "max") -> None:
        super().__init__()
        self.folder = folder / "checkpoints"
        self.best_path, self.last_path, self.midway_path = (
            self.folder / f"{name}.ckpt" for name in ("best", "last", "midway")
        )
        self.monitor = monitor
        self.mode = mode
        self.best: float | None = None
        self.best_epoch: int | None = None

    @property
    def best_model_path(self) -> str:
        """The same as Lightning asks for it, in `trainer.test(ckpt_path="best")`; empty if there is none."""
        return "" if self.best_epoch is None else str(self.best_path)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Remove what an interrupted write has left."""
        if trainer.is_global_zero and self.folder.is_dir():
            remove_partial_files(self.folder)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse a number that no visual has measured, before an epoch is spent."""
        if self.monitor is not None and self.monitor.split("/")[0] not in ("train", "val") and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._score(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the checkpoints of the epoch."""
        self.save(trainer, epoch=trainer.current_epoch + 1)

    def save(self, trainer: pl.Trainer, *, epoch: int) -> None:
        """Write `last.ckpt`, and `best.ckpt` if this epoch is the best so far."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        measured = self.monitor is not None and (self.validated or not self.monitor.startswith("val/"))
        score = self._score(trainer) if measured else None
        improved = self._improves(score)
        if improved:
            self.best, self.best_epoch = score, epoch
        # Under a third name until best.ckpt is in place: last.ckpt must never refer to a best.ckpt that is not there.
        next_path = self.folder / f".next.ckpt{PARTIAL}"
        trainer.save_checkpoint(next_path, storage_options={"for_inference": self.best_path} if improved else None)
        if trainer.is_global_zero:
            self.midway_path.unlink(missing_ok=True)  # first: it must never seem newer than the finished epoch
            next_path.replace(self.last_path)
            sync_folder(self.folder)
        trainer.strategy.barrier("checkpoints")  # other ranks read best.ckpt for the test

    def save_midway(self, trainer: pl.Trainer) -> None:
        """Write `midway.ckpt`, from which a run can resume inside the epoch; the end of the epoch removes it."""
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(self.midway_path)

    def state_dict(self) -> dict[str, Any]:
        """Return the best score and its epoch."""
        return {"best": self.best, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score and its epoch."""
        best, epoch = state_dict["best"], state_dict["best_epoch"]
        if not isinstance(best, float | None) or not isinstance(epoch, int | None):
            raise ValueError(f"the best score is {best!r:.60}, of epoch {epoch!r:.60}")
        self.best, self.best_epoch = best, epoch

    def _score(self, trainer: pl.Trainer) -> float:
        assert self.monitor is not None
        return monitored(trainer.callback_metrics, self.monitor, option="callbacks.checkpoint.monitor")

    def _improves(self, score: float | None) -> bool:
        if self.best is None:
            return True
        return score is not None and (score > self.best if self.mode == "max" else score < self.best)


def load_checkpoint(path: Path, *, mmap: bool = False, needs: tuple[str, ...] = ("state_dict",)) -> dict[str, Any]:
    """Return the content of a checkpoint as plain data; nothing in it is executed.

    Raises:
        UserError: it is damaged, or lacks one of the keys in `needs`.
    """
    try:
        content = load_plain(path, mmap=mmap)
    except LOAD_ERRORS as error:
        raise UserError(f"{path} is not a readable checkpoint: {load_error_reason(error)}") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(key), dict | list) for key in needs):
        raise UserError(f"{path} is not a usable checkpoint: it lacks one of {', '.join(needs)}")
    return content


def load_training_checkpoint(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint from which training can be resumed, its tensors mapped into memory."""
    return load_checkpoint(path, mmap=True, needs=_TRAINING_KEYS)


def _write(content: dict[str, Any], file: IO[bytes]) -> None:
    """Write and sync a checkpoint: a full disk shows here, before anything is renamed."""
    torch.save(content, file)
    file.flush()
    os.fsync(file.fileno())
