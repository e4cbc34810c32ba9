"""Resuming a run: choose the checkpoint, undo what was written after it, and check what it restores."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import Tensor
from torch.optim import Optimizer

from filterscope.errors import UserError
from filterscope.storage.atomic import paths_of_run, remove_partial_files
from filterscope.training.checkpoints import load_training_checkpoint
from filterscope.training.loggers import EVENTS

_EPOCH_FILE = re.compile(r"epoch_(\d+)\.(png|csv|npz)")


def find_resume_checkpoint(folder: Path, trainer: pl.Trainer) -> Path | None:
    """Return the checkpoint of a run folder to resume from: `midway.ckpt` if it fits this start, else `last.ckpt`.

    `midway.ckpt` needs as many processes as wrote it, because each of them has read its own share of the images.
    Returns None if there is no checkpoint yet, and the run starts over.

    Raises:
        UserError: the checkpoint is damaged, or has more finished epochs than `trainer.max_epochs`.
    """
    midway, last = folder / "checkpoints" / "midway.ckpt", folder / "checkpoints" / "last.ckpt"
    if midway.is_file() and _fits(load_training_checkpoint(midway), trainer):
        return midway
    if not last.is_file():
        return None
    finished = _written(load_training_checkpoint(last))[0]
    limit = trainer.max_epochs
    if limit is not None and finished is not None and -1 < limit < finished:
        raise UserError(f"{last} has {finished} finished epochs, trainer.max_epochs={limit} is fewer")
    return last


def resume_conditions(trainer: pl.Trainer) -> dict[str, int | float | None]:
    """Return the settings that must not change for a run to resume inside an epoch."""
    return {
        "processes": trainer.world_size,
        "accumulate": trainer.accumulate_grad_batches,
        "limit": trainer.limit_train_batches,
    }


def remove_later_outputs(folder: Path, checkpoint: Path | None) -> None:
    """Undo what was written to a run folder after a checkpoint, or everything if it is None.

    Event files are cut to their length at that time, pictures and tables of later epochs are removed, so that a
    repeated epoch appears once everywhere.
    """
    finished, sizes = _written(load_training_checkpoint(checkpoint)) if checkpoint else (-1, {})
    if finished is None:
        return
    remove_partial_files(folder)
    for path in folder.glob(EVENTS):
        size = sizes.get(path.name, 0)
        if size <= 0:
            path.unlink()
        elif path.stat().st_size > size:
            os.truncate(path, size)
    for path in list(paths_of_run(folder)):
        found = _EPOCH_FILE.fullmatch(path.name)
        if found and int(found[1]) > finished:
            path.unlink()
    if checkpoint is None:
        (folder / "metrics.csv").unlink(missing_ok=True)


def check_same_data(about: Mapping[str, Any], checkpoint: Path) -> None:
    """Check that a run's data is what its checkpoint was trained on.

    Args:
        about: what the module stores now: the class names and, for each split, its number of images and their hash.
        checkpoint: holds what was stored then.

    Raises:
        UserError: they differ.
    """
    seen = load_training_checkpoint(checkpoint)["filterscope"]
    names, before = list(about["class_names"]), list(map(str, seen["class_names"]))
    differences = [f"{len(names)} classes, not {len(before)}"] if len(names) != len(before) else []
    renamed = [f"class {i} is {a!r}, not {b!r}" for i, (a, b) in enumerate(zip(names, before, strict=False)) if a != b]
    differences += renamed[:1]
    for split in {**about["data"], **seen.get("data", {})}:
        now, then = about["data"].get(split, [0, ""]), seen.get("data", {}).get(split, [0, ""])
        if now[0] != then[0]:
            differences.append(f"{now[0]} {split} images, not {then[0]}")
        elif now != then:
            differences.append(f"other {split} images or labels")
    if differences:
        raise UserError(
            f"the data is not what {checkpoint} was trained on: {', '.join(differences)}; put it back as it was "
            "(data.root=… if it was moved), or start a new run"
        )


def resume_training(
    trainer: pl.Trainer, module: pl.LightningModule, data: pl.LightningDataModule, checkpoint: Path
) -> None:
    """Train from a checkpoint on.

    Raises:
        UserError: the checkpoint does not belong to this network, optimizer or schedule.
    """
    started = _RestoreCheck()
    trainer.callbacks.insert(0, started)  # type: ignore[attr-defined]
    try:
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    except (LookupError, TypeError, ValueError, AttributeError, AssertionError, RuntimeError) as error:
        if started.passed or isinstance(error, UserError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{checkpoint} does not fit its run: {type(error).__name__}: {reason}") from error
    finally:
        trainer.callbacks.remove(started)  # type: ignore[attr-defined]


class _RestoreCheck(pl.Callback):
    """Checks what was restored before the first step; errors up to then are the checkpoint's fault."""

    passed = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        check_restored(trainer, pl_module)
        self.passed = True


def check_restored(trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """Compare the restored optimizer and schedule with new ones.

    Raises:
        ValueError: a value has another type or length than a new one.
    """
    new: Any = module.configure_optimizers()
    (optimizer,), (schedule,) = trainer.optimizers, trainer.lr_scheduler_configs
    _check_similar(optimizer.state_dict()["param_groups"], new["optimizer"].state_dict()["param_groups"], "optimizer")
    _check_similar(schedule.scheduler.state_dict(), new["lr_scheduler"]["scheduler"].state_dict(), "schedule")
    check_moments(optimizer)


def check_moments(optimizer: Optimizer) -> None:
    """Check that the optimizer's state of each parameter has its shape, and the same entries for all parameters.

    Raises:
        ValueError: it has not.
    """
    names = {frozenset(moments) for moments in optimizer.state.values() if moments}
    if len(names) > 1:
        raise ValueError("optimizer has more state for some parameters than for others")
    for parameter, moments in optimizer.state.items():
        for name, moment in moments.items():
            if isinstance(moment, Tensor) and moment.dim() and moment.shape != parameter.shape:
                raise ValueError(f"optimizer.{name} has the shape {tuple(moment.shape)}, not {tuple(parameter.shape)}")
            if not isinstance(moment, Tensor | int | float | None):
                raise ValueError(f"optimizer.{name} is {moment!r:.60}")


def _check_similar(value: Any, pattern: Any, where: str) -> None:
    """Raise a `ValueError` if a value has another type, length, shape or other keys than a pattern."""
    if isinstance(pattern, dict):
        fits = isinstance(value, dict) and value.keys() >= pattern.keys()
        if fits:
            for key, each in pattern.items():
                _check_similar(value[key], each, f"{where}.{key}")
    elif isinstance(pattern, list | tuple):
        fits = isinstance(value, list | tuple) and len(value) == len(pattern)
        if fits:
            for number, (one, other) in enumerate(zip(value, pattern, strict=True)):
                _check_similar(one, other, f"{where}.{number}")
    elif isinstance(pattern, Tensor):
        fits = isinstance(value, Tensor) and value.shape == pattern.shape
    elif isinstance(pattern, bool | str) or pattern is None:
        fits = pattern is None or isinstance(value, type(pattern))
    else:
        fits = not isinstance(pattern, int | float) or (isinstance(value, int | float) and not isinstance(value, bool))
    if not fits:
        raise ValueError(f"{where} is {value!r:.60}")


def _fits(content: dict[str, Any], trainer: pl.Trainer) -> bool:
    midway = content["filterscope"].get("midway")
    return isinstance(midway, dict) and bool(midway.get("conditions") == resume_conditions(trainer))


def _written(content: dict[str, Any]) -> tuple[int | None, dict[str, int]]:
    """Return a checkpoint's number of finished epochs and lengths of event files; None if it holds none."""
    written = content["filterscope"].get("written")
    if not isinstance(written, dict):
        return None, {}
    try:
        return int(written["finished"]), {str(name): int(size) for name, size in written["events"].items()}
    except (LookupError, TypeError, ValueError, AttributeError):
        return None, {}
