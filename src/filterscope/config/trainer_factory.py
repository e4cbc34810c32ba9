"""From objects to a run that starts: the trainer with all that watches it, and what is said before the first epoch."""

import logging
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException

from filterscope.config.instantiate import Config
from filterscope.data.datamodule import ImageDataModule
from filterscope.errors import UserError
from filterscope.runtime.malloc import keep_freed_memory
from filterscope.training.cached_epochs import FeatureCache
from filterscope.training.checkpoints import AtomicCheckpointIO, RunCheckpoints
from filterscope.training.epoch_progress import EpochProgressBar
from filterscope.training.log_visuals import LogVisuals
from filterscope.training.loggers import RunTensorBoardLogger
from filterscope.training.metrics_log import MetricsLog
from filterscope.training.module import FinetuneModule
from filterscope.training.preemption import FiniteLoss, Preemption
from filterscope.visuals.visual import Visual

log = logging.getLogger(__name__)


def build_trainer(
    cfg: Config, folder: Path, visuals: dict[str, Visual], data: ImageDataModule | None = None
) -> pl.Trainer:
    """Build the trainer that writes to a run folder; what rests is not run twice on the images of `data`."""
    keep_freed_memory()
    settings = {key: value for key, value in cfg["trainer"].items() if key != "_target_"}
    if settings["precision"] == "auto":
        settings["precision"] = precision_for(settings["accelerator"])
    if settings["benchmark"] is None:
        settings["benchmark"] = not settings["deterministic"]
    if torch.cuda.is_available() and not settings["deterministic"]:
        torch.set_float32_matmul_precision("high")  # TF32 for what autocast leaves in float32
    watch = cfg["checkpoint"]
    rows, finite = MetricsLog(folder), FiniteLoss()
    kept = RunCheckpoints(folder / "checkpoints", monitor=watch["monitor"], mode=watch["mode"])
    place = cfg.get("features_cache")
    resting = [FeatureCache(data, folder=Path(place).expanduser() if place else None)] if data is not None else []
    callbacks: list[pl.Callback] = [
        *resting,
        finite,
        rows,
        LogVisuals(
            visuals,
            folder=folder,
            num_examples=cfg["num_examples"],
            seed=cfg["seed"],
            draw_end=False,
            strict=True,
        ),
        Preemption(kept, finite, every_minutes=watch.get("every_minutes")),
        kept,
    ]
    if watch["patience"] is not None:
        callbacks.append(pl.callbacks.EarlyStopping(watch["monitor"], mode=watch["mode"], patience=watch["patience"]))
    if settings.get("enable_progress_bar", True):
        callbacks.append(EpochProgressBar())
    # Lightning's own way of starting a Slurm job again knows nothing of run folders.
    slurm = [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []
    try:
        return pl.Trainer(
            **settings,
            logger=RunTensorBoardLogger(folder),
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO(), *slurm],
            default_root_dir=folder,
            num_sanity_val_steps=0,
            inference_mode=False,  # metrics that a validation before training resets must stay ordinary tensors
            log_every_n_steps=20,
            use_distributed_sampler=False,
            enable_model_summary=False,
        )
    except (MisconfigurationException, ValueError, TypeError) as error:
        chosen = ", ".join(f"trainer.{key}={settings[key]}" for key in ("accelerator", "devices", "precision"))
        raise UserError(f"{chosen}: {str(error).splitlines()[0]}") from error


def silence_libraries() -> None:
    """Silence what libraries say to their own developers; what a user should know, filterscope says itself."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric|torchmetrics|torch")


def precision_for(accelerator: str) -> str:
    """Return `bf16-mixed` where the processor computes in bfloat16, else `32-true`, and say so in the log."""
    on_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available())
    fast = torch.cuda.is_bf16_supported() if on_gpu else torch.cpu._is_avx512_bf16_supported()
    choice = "bf16-mixed" if fast else "32-true"
    log.info("precision %s (trainer.precision decides otherwise)", choice)
    return choice


def log_summary(module: FinetuneModule, data: ImageDataModule) -> None:
    """Say in a line each what is trained on what."""
    trained = sum(p.numel() for p in module.classifier.parameters() if p.requires_grad)
    total = sum(p.numel() for p in module.classifier.parameters())
    log.info("%s: %s of %s parameters are trained", module.classifier.backbone.name, f"{trained:,}", f"{total:,}")
    log.info("%d classes, images of %d×%d pixels", data.num_classes, data.image_size, data.image_size)


def log_skipped_files(trainer: pl.Trainer, data: ImageDataModule) -> None:
    """Put into the row of epoch 0 how many damaged files were left out, where there were any."""
    if not data.skipped:
        return
    counted = {"data/skipped": float(len(data.skipped))}
    next(each for each in trainer.callbacks if isinstance(each, MetricsLog)).add(trainer, counted, epoch=0)  # type: ignore[attr-defined]
    if trainer.logger is not None:
        trainer.logger.log_metrics(counted, step=0)


def draw_untrained(trainer: pl.Trainer, module: FinetuneModule) -> None:
    """Draw and keep a network that is not trained at all."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, LogVisuals):
            callback.draw(trainer, module, epoch=0)
        elif isinstance(callback, RunCheckpoints):
            callback.keep(trainer, epoch=0)
