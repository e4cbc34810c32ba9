"""Checkpoints that are whole or not there: `best.ckpt` and `last.ckpt`, written beside their place and renamed."""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Literal

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import CheckpointIO
from pytorch_lightning.callbacks import Checkpoint

from filterscope.errors import UserError, suggestion
from filterscope.storage.atomic import PARTIAL, atomic_write, remove_partial_files, sync_folder
from filterscope.storage.safe_load import LOAD_ERRORS, load_error_reason, load_plain
from filterscope.training.metrics_log import SPLITS

_NEEDED = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", "filterscope")


class AtomicCheckpointIO(CheckpointIO):
    """Writes a checkpoint to a temporary name in its own folder, syncs it and renames it.

    Lightning's own writes through the system's temporary folder and never syncs, so that a crash can leave half a
    file under the real name (Lightning #19970).
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write the checkpoint; the old file under the name stays until the new one is complete.

        Args:
            checkpoint: what to write.
            path: where.
            storage_options: `{"for_looking": other path}` where the part of it that looking needs is to be written
                too, at the same time: most of the work is checksums, on one core. Both files are complete, or neither.
        """
        contents = {Path(path): checkpoint}
        if storage_options:
            contents[Path(storage_options["for_looking"])] = _for_looking(checkpoint)
        with ExitStack() as stack, ThreadPoolExecutor(max_workers=len(contents)) as pool:
            # Renamed in reverse order, so that what looks is there when the whole is.
            files = [stack.enter_context(atomic_write(place, sync=True)) for place in contents]
            list(pool.map(_write, contents.values(), files))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a checkpoint without executing anything in it."""
        del weights_only
        del map_location
        return load_training_checkpoint(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint."""
        Path(path).unlink(missing_ok=True)


class RunCheckpoints(Checkpoint):
    """Writes `last.ckpt` after every epoch and `best.ckpt` whenever the monitored metric is the best so far.

    `last.ckpt` holds everything that a resumed run needs, and so does `midway.ckpt`, which others ask for inside a long
    epoch; `best.ckpt` holds the weights and what looking needs, without the optimizer's state.
    """

    def __init__(self, folder: Path, *, monitor: str = "val/acc", mode: Literal["max", "min"] = "max") -> None:
        super().__init__()
        self.folder = folder / "checkpoints"
        self.monitor = monitor
        self.mode = mode
        self.best: float | None = None
        self.best_epoch: int | None = None
        self._validated = False

    @property
    def best_path(self) -> Path:
        """Where the best checkpoint lies."""
        return self.folder / "best.ckpt"

    @property
    def last_path(self) -> Path:
        """Where the last checkpoint lies."""
        return self.folder / "last.ckpt"

    @property
    def midway_path(self) -> Path:
        """Where the checkpoint inside an epoch lies, while there is one."""
        return self.folder / "midway.ckpt"

    @property
    def _next_path(self) -> Path:
        return self.folder / f".next.ckpt{PARTIAL}"

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Sweep up what an interrupted write left."""
        del pl_module, stage
        if trainer.is_global_zero and self.folder.is_dir():
            remove_partial_files(self.folder)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse a metric that no visual has measured, before an epoch is spent."""
        del pl_module
        if self.monitor.split("/")[0] not in SPLITS:
            self._score(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the checkpoints of the epoch that has just ended."""
        del pl_module
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.keep(trainer, epoch=trainer.current_epoch + 1)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the last validation: an epoch without one (`check_val_every_n_epoch`, `max_steps`) has no score."""
        del trainer, pl_module
        self._validated = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note that this epoch has been validated."""
        del trainer, pl_module
        self._validated = True

    def keep(self, trainer: pl.Trainer, *, epoch: int) -> None:
        """Write `last.ckpt`, and `best.ckpt` if this epoch is the best so far or the first one."""
        measured = self._validated or not self.monitor.startswith("val/")
        score = self._score(trainer) if measured else None
        better = self._improves(score)
        if better:
            self.best, self.best_epoch = score, epoch
        # Under a third name until best.ckpt is in its place: last.ckpt must never know of a best that is not there.
        trainer.save_checkpoint(self._next_path, storage_options={"for_looking": self.best_path} if better else None)
        if trainer.is_global_zero:
            self.midway_path.unlink(missing_ok=True)  # first: the finished epoch must never seem older than its middle
            self._next_path.replace(self.last_path)
            sync_folder(self.folder)
        trainer.strategy.barrier("checkpoints")  # other ranks read best.ckpt for the test

    def keep_midway(self, trainer: pl.Trainer) -> None:
        """Write `midway.ckpt`, from which a run goes on inside the epoch; the epoch's end removes it."""
        trainer.save_checkpoint(self.midway_path)

    def state_dict(self) -> dict[str, Any]:
        """Return the best so far."""
        return {"best": self.best, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best so far."""
        best, epoch = state_dict["best"], state_dict["best_epoch"]
        if not isinstance(best, float | None) or not isinstance(epoch, int | None):
            raise ValueError(f"the best so far is {best!r:.60} in epoch {epoch!r:.60}")
        self.best, self.best_epoch = best, epoch

    def _score(self, trainer: pl.Trainer) -> float:
        score = trainer.callback_metrics.get(self.monitor)
        if score is None:
            alike = [name for name in trainer.callback_metrics if name.split("/")[0] == self.monitor.split("/")[0]]
            measured = ", ".join(sorted(alike or trainer.callback_metrics)) or "nothing yet"
            meant = suggestion(self.monitor, trainer.callback_metrics)
            raise UserError(
                f"callbacks.checkpoint.monitor={self.monitor!r} is not measured{meant}; measured are {measured}"
            )
        return float(score)

    def _improves(self, score: float | None) -> bool:
        if self.best is None:
            return score is not None or self.best_epoch is None
        if score is None:
            return False
        return score > self.best if self.mode == "max" else score < self.best


def load_training_checkpoint(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    """Return the content of a checkpoint that training can go on from; nothing in it is executed.

    Raises:
        UserError: it is damaged, or no such checkpoint.
    """
    try:
        content = load_plain(path, mmap=mmap)
    except LOAD_ERRORS as error:
        raise UserError(f"{path} is not a readable checkpoint: {load_error_reason(error)}") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(key), dict | list) for key in _NEEDED):
        raise UserError(
            f"{path} is not a checkpoint that training can go on from: it lacks one of {', '.join(_NEEDED)}"
        )
    return content


def _write(content: dict[str, Any], file: IO[bytes]) -> None:
    """Write a checkpoint and put it on the disk: what a full disk refuses shows here, before anything is renamed."""
    torch.save(content, file)
    file.flush()
    os.fsync(file.fileno())


def _for_looking(content: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a checkpoint that looking needs: weights, config and past, without the optimizer's state."""
    return {key: value for key, value in content.items() if key not in ("optimizer_states", "callbacks", "loops")}
