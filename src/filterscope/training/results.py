"""Finish a run: test the best epoch, write the final tables and export the weights."""

import logging
import typing
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist

from filterscope.data.datamodule import ImageDataModule
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.storage.atomic import atomic_write
from filterscope.training.checkpoints import RunCheckpoints, load_checkpoint
from filterscope.training.log_visuals import LogVisuals
from filterscope.training.loggers import RunTensorBoardLogger, tensorboard_writer
from filterscope.training.metrics_log import MetricsLog
from filterscope.training.module import FinetuneModule
from filterscope.visuals.confusion import accuracy_table, confusion_picture
from filterscope.visuals.output.outputs import Output
from filterscope.visuals.output.tables import table_text
from filterscope.visuals.output.writer import write_outputs

log = logging.getLogger(__name__)

Kind = typing.TypeVar("Kind", bound=pl.Callback)


def finish_run(
    trainer: pl.Trainer, module: FinetuneModule, data: ImageDataModule, cfg: dict[str, Any], folder: Path
) -> dict[str, float]:
    """Test the best epoch if there is a test split, write the final tables and return all metrics of that epoch.

    With `trainer.fast_dev_run` the network is tested as it is, and nothing is written.
    """
    checkpoints, rows = callback_of(trainer, RunCheckpoints), callback_of(trainer, MetricsLog).rows
    best = checkpoints.best_epoch if checkpoints.best_epoch is not None else max(rows)
    metrics = dict(rows.get(best, {}))
    trial: bool = trainer.fast_dev_run  # type: ignore[attr-defined]
    if not trial:
        module.load_state_dict(load_checkpoint(checkpoints.best_path)["state_dict"])
    if data.has_test:
        trainer.test(module, data, verbose=False)
        metrics |= {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("test/")}
    callback_of(trainer, LogVisuals).draw_final(trainer, module, epoch=best)
    if trainer.is_global_zero and not trial:
        _write_results(trainer, module, cfg, folder, metrics)
    leave_process_group(trainer)
    return metrics


def callback_of(trainer: pl.Trainer, kind: type[Kind]) -> Kind:
    """Return the Trainer's callback of a class."""
    return next(each for each in trainer.callbacks if isinstance(each, kind))  # type: ignore[attr-defined]


def leave_process_group(trainer: pl.Trainer) -> None:
    """Close the process group on all ranks together: a rank that exits with an open group can abort the others."""
    if dist.is_available() and dist.is_initialized():
        trainer.strategy.barrier()
        dist.destroy_process_group()


def check_export_format(classifier: Classifier, kind: str | None) -> None:
    """Raise a `UserError` where weights cannot be written in that form, before anything is trained or drawn."""
    if kind not in (None, "state_dict", "tensors"):
        raise UserError(f"export={kind!r} is not possible; export=state_dict, tensors or null")
    if kind is not None:
        classifier.check_exportable()


def export_weights(classifier: Classifier, kind: str | None, folder: Path) -> None:
    """Write the weights in a form that others load; None: nothing."""
    if kind is None:
        return
    check_export_format(classifier, kind)
    content = classifier.export_tensors() if kind == "tensors" else classifier.export_state_dict()
    path = folder / f"{classifier.backbone.name}{'_tensors' if kind == 'tensors' else ''}.pt"
    with atomic_write(path) as file:
        torch.save(content, file)
    log.info("exported %s", path)


def tensorboard_command(folder: Path) -> str:
    """Return the command that shows every picture of a run, not a sample of ten."""
    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    return f"tensorboard --logdir {shown} --samples_per_plugin images=100000"


def _write_results(
    trainer: pl.Trainer, module: FinetuneModule, cfg: dict[str, Any], folder: Path, metrics: dict[str, float]
) -> None:
    writer = tensorboard_writer(trainer)
    for split, counts in module.confusion.items():
        shown: dict[str, Output] = {
            f"predictions/confusion_{split}": confusion_picture(counts, module.classifier.class_names),
            f"predictions/per_class_{split}": accuracy_table(counts, module.classifier.class_names),
        }
        write_outputs(shown, folder=folder, writer=writer, epoch=trainer.current_epoch)
    # A visual's numbers for single layers stand in its tables and in metrics.csv.
    whole = {name: value for name, value in metrics.items() if name.count("/") == 1 or name.endswith("/all")}
    for logger in trainer.loggers:
        if isinstance(logger, RunTensorBoardLogger):
            logger.log_outcome(_choices(cfg), whole)
    export_weights(module.classifier, cfg["export"], folder)
    looks = callback_of(trainer, LogVisuals)
    for tag, table in looks.summaries.items():
        log.info("%s", table_text(table, f"{tag}, epoch {looks.state.epoch}"))
    for name, value in sorted(whole.items()):
        log.info("%s %.4f", name, value)
    log.info("%s", tensorboard_command(folder))


def _choices(cfg: dict[str, Any]) -> dict[str, str | int | float | bool]:
    """Return what one compares runs by: the option chosen from each group and the knobs that decide the outcome."""
    named = ("data", "head", "finetune", "optimizer", "schedule")
    groups = {group: str(cfg[group]["_target_"]).rpartition(".")[2] for group in named}
    knobs = {
        "model.name": cfg["model"].get("name", "small_cnn"),
        "model.weights": cfg["model"]["weights"],
        "data.image_size": cfg["data"]["image_size"],
        "data.batch_size": cfg["data"]["batch_size"],
        **{f"optimizer.{key}": value for key, value in cfg["optimizer"].items() if not key.startswith("_")},
        **{f"finetune.{key}": value for key, value in cfg["finetune"].items() if not key.startswith("_")},
        **{f"trainer.{key}": cfg["trainer"][key] for key in ("max_epochs", "devices", "num_nodes")},
        "label_smoothing": cfg["label_smoothing"],
        "seed": cfg["seed"],
    }
    return groups | {key: v if isinstance(v, (int, float, bool)) else str(v) for key, v in knobs.items()}
