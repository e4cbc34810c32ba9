"""Build the Trainer with its callbacks and loggers, and log a summary before training starts."""

import inspect
import logging
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from pytorch_lightning.callbacks import ProgressBar
from pytorch_lightning.loggers import Logger

from filterscope.config.instantiate import Config, instantiate
from filterscope.config.options import TRAINER
from filterscope.data.datamodule import ImageDataModule
from filterscope.errors import UserError, as_written
from filterscope.runtime.cores import computes_in_bf16
from filterscope.runtime.malloc import keep_freed_memory
from filterscope.runtime.processes import ranks
from filterscope.training.checkpoints import AtomicCheckpointIO, RunCheckpoints
from filterscope.training.log_visuals import LogVisuals
from filterscope.training.loggers import log_numbers
from filterscope.training.metrics_log import MetricsLog, find_callback
from filterscope.training.module import FinetuneModule
from filterscope.training.preemption import Preemption
from filterscope.training.ridge_head import RidgeHead
from filterscope.training.weight_average import is_averaging
from filterscope.visuals.visual import Visual

log = logging.getLogger(__name__)

_FIXED = {
    "callbacks": "callbacks=[default,…] chooses them",
    "logger": "logger=[tensorboard,…] chooses it",
    "default_root_dir": "hydra.run.dir=… is the run folder",
    "plugins": "checkpoints are written by a plugin that leaves no half file",
    "inference_mode": "it must be false, for metrics are updated after a validation before training",
    "use_distributed_sampler": "it must be false, for the data module's sampler shards the images itself",
}
"""Trainer arguments that filterscope sets, each with the reason or the option to use instead."""


def build_trainer(cfg: Config, folder: Path, visuals: dict[str, Visual]) -> pl.Trainer:
    """Build the Trainer of a run.

    Args:
        cfg: the config of the run; each option below `trainer` is an argument of the Trainer.
        folder: the run folder.
        visuals: drawn after each epoch.

    Raises:
        UserError: Lightning or a callback or logger refuses an option.
    """
    keep_freed_memory()
    node = dict(cfg["trainer"])
    for key, reason in _FIXED.items():
        if key in node:
            raise UserError(f"trainer.{key} cannot be set: {reason}")
    if re.search("spawn|fork|notebook", str(node.get("strategy"))):
        raise UserError(f"trainer.strategy={node['strategy']}: the processes would share one run; use ddp")
    if node.get("precision", "auto") == "auto":
        node["precision"] = precision_for(node["accelerator"])
    if node.get("benchmark") is None:
        node["benchmark"] = not node["deterministic"]
    if torch.cuda.is_available() and not node["deterministic"]:
        torch.set_float32_matmul_precision("high")  # TF32 for what autocast leaves in float32
    # Lightning's own way to requeue a Slurm job knows nothing of run folders.
    slurm = [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []
    callbacks = build_callbacks(cfg, folder, visuals)
    if not any(isinstance(each, ProgressBar) for each in callbacks):
        node["enable_progress_bar"] = False  # otherwise Lightning adds its own, which counts epochs from 0
    loggers = build_loggers(cfg, folder)
    try:
        trainer: pl.Trainer = instantiate(
            node,
            where="trainer",
            kind=pl.Trainer,
            narrower=TRAINER,
            callbacks=callbacks,
            logger=loggers or False,
            plugins=[AtomicCheckpointIO(), *slurm],
            default_root_dir=folder,
            inference_mode=False,
            use_distributed_sampler=False,
        )
    except UserError as error:
        raise _with_options(error, node) from error
    ranks.watch(trainer.strategy.launcher)
    return trainer


def build_callbacks(cfg: Config, folder: Path, visuals: dict[str, Visual]) -> list[pl.Callback]:
    """Build the callbacks of the group `callbacks`; one that is null is left out."""
    built: dict[str, pl.Callback] = {}
    for name, node in cfg["callbacks"].items():
        if not node or (name == "progress_bar" and not cfg["trainer"].get("enable_progress_bar", True)):
            continue
        offered = {"folder": folder, "visuals": visuals}
        built[name] = instantiate(node, where=f"callbacks.{name}", kind=pl.Callback, offered=offered)
    # What changes the weights before others look at them first; what saves inside an epoch last, with the state of all.
    ranks: dict[type[pl.Callback], int] = {RidgeHead: 0, Preemption: 3}
    return sorted(built.values(), key=lambda each: ranks.get(type(each), 1 if is_averaging(each) else 2))


def build_loggers(cfg: Config, folder: Path) -> list[Any]:
    """Build the loggers of the group `logger`; each writes to the run folder unless its options say otherwise."""
    offered = {
        "folder": folder,
        "save_dir": str(folder),
        "tracking_uri": f"sqlite:///{folder.resolve() / 'mlflow.db'}",
        "artifact_location": str(folder.resolve() / "mlflow"),
    }
    built = []
    for name, node in (cfg.get("logger") or {}).items():
        if not node:
            continue
        if not isinstance(node, dict):
            raise UserError(f"logger.{name}={as_written(node)}: must be options with a _target_, a dotted name")
        given = {key: value for key, value in node.items() if value is not None or key not in offered}
        # A server chooses the place of its artifacts itself.
        here = {key: offered[key] for key in offered if key != "artifact_location" or "tracking_uri" not in given}
        built.append(instantiate(given, where=f"logger.{name}", kind=Logger, offered=here))
    return built


def _with_options(error: UserError, options: Mapping[str, Any]) -> UserError:
    """Return Lightning's refusal with the options it is about: Lightning often does not name them."""
    where, _, message = str(error).partition(": ")
    if where != "trainer":
        return error
    defaults = inspect.signature(pl.Trainer.__init__).parameters
    given = {k: v for k, v in options.items() if k in defaults and v is not None and v != defaults[k].default}
    named = [
        key
        for key, value in given.items()
        if re.search(rf"\b{key}\b", message) or (isinstance(value, str) and value in message)
    ]
    return UserError(", ".join(f"trainer.{key}={as_written(given[key])}" for key in named or given) + f": {message}")


def silence_libraries() -> None:
    """Silence messages that libraries address to developers; filterscope logs what a user needs to know."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric|torchmetrics|torch")


def seed_everything(seed: int) -> None:
    """Seed the global random states, which decide new weights."""
    pl.seed_everything(seed, workers=True, verbose=False)


def precision_for(accelerator: str) -> str:
    """Return `bf16-mixed` if the processor computes in bfloat16, else `32-true`, and log the choice."""
    on_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available())
    fast = torch.cuda.is_bf16_supported() if on_gpu else computes_in_bf16()
    choice = "bf16-mixed" if fast else "32-true"
    log.info("precision %s (trainer.precision=auto)", choice)
    return choice


def log_summary(module: FinetuneModule, data: ImageDataModule) -> None:
    """Log the number of trained parameters, what was taken for splits and classes with counts, and the image size."""
    trained = sum(p.numel() for p in module.classifier.parameters() if p.requires_grad)
    total = sum(p.numel() for p in module.classifier.parameters())
    log.info("%s: %s of %s parameters are trained", module.classifier.backbone.name, f"{trained:,}", f"{total:,}")
    log.info("%s: %s; %d×%d pixels", data.location, data.describe(), data.image_size, data.image_size)


def log_skipped_files(trainer: pl.Trainer, data: ImageDataModule) -> None:
    """Log the number of damaged files that were left out, if any, as a metric of epoch 0."""
    if not data.skipped:
        return
    counted = {"data/skipped": float(len(data.skipped))}
    if metrics_log := find_callback(trainer, MetricsLog):
        metrics_log.add(trainer, counted, epoch=0)
    log_numbers(trainer, counted, epoch=0)


def draw_untrained(trainer: pl.Trainer, module: FinetuneModule) -> None:
    """Draw and save a network that is not trained at all (`trainer.max_epochs=0`)."""
    if visuals := find_callback(trainer, LogVisuals):
        visuals.draw(trainer, module, epoch=0)
    if checkpoints := find_callback(trainer, RunCheckpoints):
        checkpoints.save(trainer, epoch=0)
