"""Build the parts of a run from its config: data, classifier, visuals, Lightning module."""

import logging
import platform
from types import NoneType
from typing import Any

import torch
from hydra.utils import get_object
from pydantic import NonNegativeFloat
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchvision.transforms.v2 import Transform

from filterscope.config.instantiate import Config, instantiate
from filterscope.data.datamodule import ImageDataModule
from filterscope.errors import UserError
from filterscope.models import heads
from filterscope.models.backbone import Backbone
from filterscope.models.classifier import Classifier
from filterscope.registry import is_registered, register, target_of
from filterscope.training.module import FinetuneModule
from filterscope.training.policies import Policy
from filterscope.training.prune import Prune
from filterscope.visuals.visual import Examples, Visual

log = logging.getLogger(__name__)

_RECIPE = "filterscope.analysis.synthesis.Recipe"


def build_data(cfg: Config, stage: str = "fit") -> ImageDataModule:
    """Build the datamodule and set it up.

    Args:
        cfg: the config.
        stage: as in Lightning; `predict` needs no labels.

    Raises:
        UserError: no data set is chosen, or its files are missing or damaged.
    """
    if "_target_" not in cfg["data"]:
        raise UserError(
            "there is no data to train on; choose a data set, such as data=synthetic_flowers or data=flowers"
        )
    data: ImageDataModule = instantiate(cfg["data"], where="data", kind=ImageDataModule)
    data.prepare_data()
    data.setup(stage)
    if data.trains_on_val and stage == "fit":
        _keep_last_epoch(cfg, tested=data.has_test)
    cfg["data"]["bit_depth"] = data.bit_depth  # stored, so that single images are drawn as those of the data
    return data


def _keep_last_epoch(cfg: Config, *, tested: bool) -> None:
    """Make the last epoch the best one, because validation images that are trained on cannot choose one."""
    callbacks = cfg.get("callbacks") or {}
    watching = [f"callbacks.{name}" for name, node in callbacks.items() if node and "val/" in str(node.get("monitor"))]
    if watching not in ([], ["callbacks.checkpoint"]):
        raise UserError(
            f"data.train_splits=[train,val] trains on the validation images, so {watching[-1]} cannot watch "
            "val/…; leave it out, or give it another monitor"
        )
    if watching:
        callbacks["checkpoint"]["monitor"] = None
    measure = "the test decides" if tested else "without test images nothing measures this network"
    log.info("the validation images are trained on: val/… is no measure, and the last epoch is kept; %s", measure)


def register_named_model(cfg: Config) -> None:
    """Register the network that `model.path` names; only for a config that the user has given, never for a file's.

    Raises:
        UserError: it cannot be imported.
    """
    path = cfg["model"].get("path")
    if path is None or is_registered(str(path), ("model",)):
        return
    try:
        part = get_object(str(path))
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"model.path={path!r} cannot be imported: {error}") from error
    if not callable(part) or target_of(part) != path:
        raise UserError(f"model.path={path!r} is no function or class of that name")
    register("model", str(path))(part)


def build_classifier(cfg: Config, data: ImageDataModule) -> Classifier:
    """Build the classifier for the data's classes and image size."""
    register_named_model(cfg)
    backbone: Backbone = instantiate(cfg["model"], where="model", kind=Backbone)
    # Stored, because a checkpoint is rebuilt without the weights file that decides it.
    cfg["model"]["num_classes"] = backbone.num_classes
    head = instantiate(cfg["head"], where="head", kind=Classifier, as_partial=True)
    classifier: Classifier = head(backbone, num_classes=data.num_classes)
    classifier.class_names = tuple(data.class_names)
    classifier.image_size = data.image_size
    classifier.check_image_size(data.image_size)
    return classifier


def build_pruning(cfg: Config) -> Prune | None:
    """Build what cuts filters out of a trained network before training; None for `prune=none`."""
    return instantiate(cfg["prune"], where="prune", kind=Prune) if cfg.get("prune") else None


def build_published(cfg: Config) -> Classifier:
    """Build a network as published, to be drawn without training.

    If the weights file holds only the convolutional part, only that part is built, and this is logged.
    """
    register_named_model(cfg)
    backbone: Backbone = instantiate(cfg["model"], where="model", kind=Backbone)
    size = int(cfg["data"]["image_size"])
    convolutional_only = bool(backbone.missing) and not backbone.allow_random
    if convolutional_only:
        log.info("only the convolutional part of %s is kept", backbone.name)
    classifier = heads.trunk(backbone) if convolutional_only else heads.keep(backbone)
    classifier.class_names = backbone.categories if len(backbone.categories) == classifier.num_classes else ()
    classifier.image_size = size
    classifier.check_image_size(size)
    return classifier


def build_visuals(cfg: Config, image_size: int | None = None) -> dict[str, Visual]:
    """Build the chosen visuals, by name; options that an experiment sets for other visuals are ignored.

    Recipes without a size make pictures of the network's `image_size`; None: of that of the data.
    """
    nodes = {name: node for name, node in (cfg.get("visuals") or {}).items() if node and "_target_" in node}
    size = image_size or int(cfg["data"]["image_size"])
    return {
        name: instantiate(_with_size(node, size), where=f"visuals.{name}", kind=Visual) for name, node in nodes.items()
    }


def _with_size(node: Any, size: int) -> Any:
    """Return the options of a visual in which the size of every recipe that has none is the network's."""
    if not isinstance(node, dict):
        return node
    filled = {key: _with_size(value, size) for key, value in node.items()}
    return filled | {"size": size} if node.get("_target_") == _RECIPE and node.get("size", size) is None else filled


def supported_visuals(visuals: dict[str, Visual], classifier: Classifier) -> dict[str, Visual]:
    """Return the visuals that support this network, and log why the others are left out."""
    kept = {}
    for name, visual in visuals.items():
        reason = visual.unsupported_reason(classifier)
        if reason:
            log.warning("visuals.%s is not drawn: %s", name, reason)
        else:
            kept[name] = visual
    return kept


def drawable_visuals(visuals: dict[str, Visual], examples: Examples) -> dict[str, Visual]:
    """Return the visuals that can be drawn from these examples, and log those that lack images.

    Raises:
        UserError: all of them need images and there are none.
    """
    if len(examples):
        return visuals
    lacking = [name for name, visual in visuals.items() if visual.needs_images]
    if lacking:
        log.warning("not drawn for lack of images: %s (give images=[photo.jpg] or data=…)", ", ".join(lacking))
    if visuals and len(lacking) == len(visuals):
        raise UserError(f"visuals {', '.join(lacking)} need images: give images=[photo.jpg] or data=…")
    return {name: visual for name, visual in visuals.items() if name not in lacking}


def prefers_contiguous(accelerator: str) -> bool:
    """Return whether convolutions are trained faster in the contiguous memory layout than in channels-last.

    On x86 processors without AVX-512 the gradients of a convolution's weights take several times as long in
    channels-last (`benchmarks/training.py --only layout`).
    """
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available())
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return on_cpu and x86 and torch.backends.cpu.get_cpu_capability() != "AVX512"


def build_module(cfg: Config, classifier: Classifier, data: ImageDataModule) -> FinetuneModule:
    """Build the Lightning module."""
    classifier.class_names = tuple(data.class_names)
    schedule = {key: value for key, value in cfg["schedule"].items() if key != "interval"}
    mix = instantiate(cfg["mix"], where="mix", kind=(Transform, NoneType), as_partial=True)
    policy: Policy = instantiate(cfg["finetune"], where="finetune", kind=Policy)
    channels_last = cfg["channels_last"]
    if channels_last is None:
        trains_convolutions = policy.trains_backbone(cfg["trainer"]["max_epochs"])
        channels_last = not (trains_convolutions and prefers_contiguous(cfg["trainer"]["accelerator"]))
    return FinetuneModule(
        classifier,
        policy=policy,
        optimizer=instantiate(
            cfg["optimizer"],
            where="optimizer",
            kind=Optimizer,
            as_partial=True,
            narrower={"lr": NonNegativeFloat, "weight_decay": NonNegativeFloat},
        ),
        schedule=instantiate(schedule, where="schedule", kind=LRScheduler, as_partial=True),
        schedule_interval=cfg["schedule"].get("interval", "step"),
        seed=cfg["seed"],
        label_smoothing=cfg["label_smoothing"],
        class_weights=data.class_weights() if cfg["class_weights"] == "balanced" else None,
        mix=mix(num_classes=data.num_classes),
        test_augment=cfg["test"]["augment"],
        channels_last=channels_last,
        compile_steps=cfg.get("compile", False),
        about={
            "config": cfg,
            "class_names": list(data.class_names),
            "image_size": data.image_size,
            "data": data.fingerprint(),
        },
    )
