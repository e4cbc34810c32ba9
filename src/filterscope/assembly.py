"""From config to objects."""

import inspect
import logging
import typing
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from hydra.utils import get_object
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pydantic import ConfigDict, TypeAdapter, ValidationError

from filterscope.data.datamodule import ImageDataModule
from filterscope.errors import UserError
from filterscope.files import replacing
from filterscope.models import heads
from filterscope.models.backbone import Backbone
from filterscope.models.classifier import Classifier
from filterscope.training.callbacks import LogVisuals
from filterscope.training.checkpoints import AtomicCheckpointIO, KeepCheckpoints
from filterscope.training.module import FinetuneModule
from filterscope.training.progress import Progress
from filterscope.training.runlog import RunLog, RunLogger
from filterscope.visuals.confusion import accuracy_table, confusion_picture
from filterscope.visuals.store import keep
from filterscope.visuals.terminal import table_text
from filterscope.visuals.visual import Examples, Output, Visual

log = logging.getLogger(__name__)

Plain = dict[str, Any]


def build(node: Plain, *, where: str, allowed: frozenset[str] | None = None, **extra: Any) -> Any:
    """Build the object that a config node describes by its `_target_`, or a partial of it with `_partial_: true`.

    The target's signature is the schema: a key it does not have and a value of another type are errors before it is
    called. Nodes below with a `_target_` are built first.

    Args:
        node: plain data.
        where: the node's place in the config, for messages.
        allowed: the only targets that may be built, None for any; configs out of files come with a list.
        extra: more arguments.
    """
    name = str(node["_target_"])
    if allowed is not None and name not in allowed:
        raise UserError(f"{where}._target_={name!r} is not something filterscope builds from a file")
    try:
        target = get_object(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{where}._target_={name!r} cannot be imported: {error}") from error
    knobs = {
        key: _built(value, where=f"{where}.{key}", allowed=allowed)
        for key, value in node.items()
        if key not in ("_target_", "_partial_")
    }
    arguments = check_knobs(target, knobs, where=where) | extra
    return partial(target, **arguments) if node.get("_partial_") else target(**arguments)


def _built(value: Any, *, where: str, allowed: frozenset[str] | None) -> Any:
    """Return what a knob says, with nodes that have a `_target_` built, also those in a plain dict of them."""
    if not isinstance(value, dict):
        return value
    if "_target_" in value:
        return build(value, where=where, allowed=allowed)
    return {key: _built(each, where=f"{where}.{key}", allowed=allowed) for key, each in value.items()}


def check_knobs(target: Callable[..., Any], knobs: Mapping[str, Any], *, where: str) -> Plain:
    """Return the knobs in the types that the target declares.

    Raises:
        UserError: a knob that the target does not have (with those it has), or a value of another type.
    """
    parameters = inspect.signature(target).parameters
    hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    checked: Plain = {}
    for key, value in knobs.items():
        if key not in parameters and not open_ended:
            raise UserError(f"{where} has no knob {key!r}; it has {', '.join(parameters)}")
        checked[key] = _checked(value, hints.get(key, Any), where=f"{where}.{key}")
    return checked


def _checked(value: Any, hint: Any, *, where: str) -> Any:
    if isinstance(hint, type) and isinstance(value, hint) and not isinstance(value, bool):
        return value
    try:
        return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{where}={value!r}: {first['msg'][0].lower()}{first['msg'][1:]}") from error


def build_data(cfg: Plain, stage: str = "fit") -> ImageDataModule:
    """Build the datamodule and let it look for its files; the stage `predict` needs no labels."""
    if "_target_" not in cfg["data"]:
        raise UserError("there is no data to train on; choose a set, such as data=embedded or data=flowers")
    data: ImageDataModule = build(cfg["data"], where="data")
    data.prepare_data()
    data.setup(stage)
    return data


def build_classifier(cfg: Plain, data: ImageDataModule) -> Classifier:
    """Build the classifier for the data's classes and image size."""
    backbone: Backbone = build(cfg["model"], where="model")
    # The weights file has said it; a checkpoint is built again without that file.
    cfg["model"]["num_classes"] = backbone.num_classes
    classifier: Classifier = build(cfg["head"], where="head")(backbone, num_classes=data.num_classes)
    classifier.class_names = tuple(data.class_names)
    classifier.image_size = data.image_size
    classifier.check_image_size(data.image_size)
    return classifier


def build_published(cfg: Plain) -> Classifier:
    """Build a network as published, to be looked at without training.

    Where the weights file holds the convolutional part alone, only that part is built, and a log line says so.
    """
    backbone: Backbone = build(cfg["model"], where="model")
    size = int(cfg["data"]["image_size"])
    convolutional_only = bool(backbone.missing) and not backbone.allow_random
    if convolutional_only:
        log.info("the weights hold the convolutional part of %s alone: nothing behind it is looked at", backbone.name)
    classifier = heads.trunk(backbone) if convolutional_only else heads.keep(backbone)
    classifier.class_names = backbone.categories if len(backbone.categories) == classifier.num_classes else ()
    classifier.image_size = size
    classifier.check_image_size(size)
    return classifier


def build_visuals(cfg: Plain) -> dict[str, Visual]:
    """Build the visuals, by name; knobs that an experiment sets of one that was not chosen are no visual."""
    nodes = {name: node for name, node in (cfg.get("visuals") or {}).items() if node and "_target_" in node}
    return {name: build(node, where=f"visuals.{name}") for name, node in nodes.items()}


def build_module(cfg: Plain, classifier: Classifier, data: ImageDataModule) -> FinetuneModule:
    """Build the Lightning module."""
    classifier.class_names = tuple(data.class_names)
    return FinetuneModule(
        classifier,
        policy=build(cfg["finetune"], where="finetune"),
        optimizer=build(cfg["optimizer"], where="optimizer"),
        schedule=build(cfg["schedule"], where="schedule"),
        seed=cfg["seed"],
        label_smoothing=cfg["label_smoothing"],
        channels_last=cfg["channels_last"],
        about={
            "config": cfg,
            "class_names": list(data.class_names),
            "image_size": data.image_size,
        },
    )


def build_trainer(cfg: Plain, folder: Path, visuals: dict[str, Visual]) -> pl.Trainer:
    """Build the trainer that writes to a run folder."""
    settings = {key: value for key, value in cfg["trainer"].items() if key != "_target_"}
    if settings["precision"] == "auto":
        settings["precision"] = precision_for(settings["accelerator"])
    watch = cfg["checkpoint"]
    rows = RunLog(folder)
    callbacks: list[pl.Callback] = [
        rows,
        LogVisuals(visuals, folder=folder, log=rows, num_examples=cfg["num_examples"], seed=cfg["seed"]),
        KeepCheckpoints(folder / "checkpoints", monitor=watch["monitor"], mode=watch["mode"]),
    ]
    if watch["patience"] is not None:
        callbacks.append(pl.callbacks.EarlyStopping(watch["monitor"], mode=watch["mode"], patience=watch["patience"]))
    if settings.get("enable_progress_bar", True):
        callbacks.append(Progress())
    try:
        return pl.Trainer(
            **settings,
            logger=RunLogger(folder),
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO()],
            default_root_dir=folder,
            num_sanity_val_steps=0,
            inference_mode=False,  # metrics that a validation before training resets must stay ordinary tensors
            log_every_n_steps=1,
            use_distributed_sampler=False,
            enable_model_summary=False,
        )
    except (MisconfigurationException, ValueError, TypeError) as error:
        chosen = ", ".join(f"trainer.{key}={settings[key]}" for key in ("accelerator", "devices", "precision"))
        raise UserError(f"{chosen}: {str(error).splitlines()[0]}") from error


def quieten() -> None:
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


def log_start(module: FinetuneModule, data: ImageDataModule) -> None:
    """Say in a line each what is trained on what."""
    trained = sum(p.numel() for p in module.classifier.parameters() if p.requires_grad)
    total = sum(p.numel() for p in module.classifier.parameters())
    log.info("%s: %s of %s parameters are trained", module.classifier.backbone.name, f"{trained:,}", f"{total:,}")
    log.info("%d classes, images of %d×%d pixels", data.num_classes, data.image_size, data.image_size)


def look_once(trainer: pl.Trainer, module: FinetuneModule) -> None:
    """Draw and keep a network that is not trained at all."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, LogVisuals):
            callback.draw(trainer, module, epoch=0)
        elif isinstance(callback, KeepCheckpoints):
            callback.keep(trainer, epoch=0)


def finish(
    trainer: pl.Trainer, module: FinetuneModule, data: ImageDataModule, cfg: Plain, folder: Path
) -> dict[str, float]:
    """Test the best epoch where there is a test split, write the final tables and return all metrics."""
    kept = next(callback for callback in trainer.callbacks if isinstance(callback, KeepCheckpoints))  # type: ignore[attr-defined]
    rows = next(callback for callback in trainer.callbacks if isinstance(callback, RunLog)).rows  # type: ignore[attr-defined]
    metrics = dict(rows.get(kept.best_epoch if kept.best_epoch is not None else max(rows), {}))
    content = torch.load(kept.best_path, map_location=module.device, weights_only=True)
    module.load_state_dict(content["state_dict"])
    if data.has_test:
        trainer.test(module, data, verbose=False)
        metrics |= {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("test/")}
    if trainer.is_global_zero:
        _write_results(trainer, module, cfg, folder, metrics)
    part(trainer)
    return metrics


def part(trainer: pl.Trainer) -> None:
    """Let the processes of a distributed run leave together: one that ends with its group still open can abort."""
    if dist.is_available() and dist.is_initialized():
        trainer.strategy.barrier()
        dist.destroy_process_group()


def check_export(classifier: Classifier, kind: str | None) -> None:
    """Raise a `UserError` where weights cannot be written in that form, before anything is trained or drawn."""
    if kind not in (None, "state_dict", "tensors"):
        raise UserError(f"export={kind!r} is not possible; export=state_dict, tensors or null")
    if kind is not None:
        classifier.check_exportable()


def export(classifier: Classifier, kind: str | None, folder: Path) -> None:
    """Write the weights in a form that others load; None: nothing."""
    if kind is None:
        return
    check_export(classifier, kind)
    content = classifier.export_tensors() if kind == "tensors" else classifier.export_state_dict()
    path = folder / f"{classifier.backbone.name}{'_tensors' if kind == 'tensors' else ''}.pt"
    with replacing(path) as file:
        torch.save(content, file)
    log.info("exported %s", path)


def answerable(visuals: dict[str, Visual], classifier: Classifier) -> dict[str, Visual]:
    """Return the visuals that this network can be asked for; a log line each says why the others are left out."""
    kept = {}
    for name, visual in visuals.items():
        reason = visual.lacks(classifier) if hasattr(visual, "lacks") else ""
        if reason:
            log.warning("not drawn: visuals.%s, because %s", name, reason)
        else:
            kept[name] = visual
    return kept


def drawable(visuals: dict[str, Visual], examples: Examples) -> dict[str, Visual]:
    """Return the visuals that can be drawn from these examples; a log line names those that lack images."""
    if len(examples):
        return visuals
    lacking = [name for name, visual in visuals.items() if getattr(visual, "needs_images", False)]
    if lacking:
        log.warning("no images to look at, so not drawn: %s (give images=[photo.jpg] or data=…)", ", ".join(lacking))
    if visuals and len(lacking) == len(visuals):
        raise UserError(f"visuals {', '.join(lacking)} need images: give images=[photo.jpg] or data=…")
    return {name: visual for name, visual in visuals.items() if name not in lacking}


def tensorboard_command(folder: Path) -> str:
    """Return the command that shows every picture of a run, not a sample of ten."""
    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    return f"tensorboard --logdir {shown} --samples_per_plugin images=100000"


def _write_results(
    trainer: pl.Trainer, module: FinetuneModule, cfg: Plain, folder: Path, metrics: dict[str, float]
) -> None:
    logger = typing.cast(RunLogger, trainer.logger)
    for split, counts in module.confusion.items():
        shown: dict[str, Output] = {
            f"predictions/confusion_{split}": confusion_picture(counts, module.classifier.class_names),
            f"predictions/per_class_{split}": accuracy_table(counts, module.classifier.class_names),
        }
        keep(shown, folder=folder, writer=logger.experiment, epoch=trainer.current_epoch)
    # A visual's numbers for single layers stand in its tables and in metrics.csv.
    whole = {name: value for name, value in metrics.items() if name.count("/") == 1 or name.endswith("/all")}
    logger.log_outcome(_choices(cfg), whole)
    export(module.classifier, cfg["export"], folder)
    looks = next(callback for callback in trainer.callbacks if isinstance(callback, LogVisuals))  # type: ignore[attr-defined]
    for tag, table in looks.summaries.items():
        log.info("%s", table_text(table, f"{tag}, epoch {looks.past.epoch}"))
    for name, value in sorted(whole.items()):
        log.info("%s %.4f", name, value)
    log.info("%s", tensorboard_command(folder))


def _choices(cfg: Plain) -> dict[str, str | int | float | bool]:
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
