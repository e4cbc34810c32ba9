"""Rebuild the network, examples and visual state of a run from its checkpoint file alone."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch

from filterscope.config.factory import build_classifier, build_data, build_published, register_named_model
from filterscope.config.instantiate import instantiate
from filterscope.config.options import find_checkpoint
from filterscope.data.datamodule import ImageDataModule
from filterscope.data.image_io import Decoding, read_image
from filterscope.data.preprocessing import fixed_transform, to_float
from filterscope.errors import UserError, first_line, printable
from filterscope.models.backbone import Backbone
from filterscope.models.classifier import Classifier
from filterscope.models.filter_removal import fit_to_weights
from filterscope.models.weights import on_meta_device
from filterscope.registry import Kind, is_registered
from filterscope.runtime.processes import is_first_process
from filterscope.storage.safe_load import LOAD_ERRORS, load_error_reason, load_plain
from filterscope.training.checkpoints import load_checkpoint
from filterscope.training.example_images import examples_of, unpack_examples
from filterscope.training.prune import Prune
from filterscope.visuals.visual import Examples, VisualState

log = logging.getLogger(__name__)

_STORED: tuple[Kind, ...] = ("data", "augmentation", "model", "head")
MAX_DRAWN = 10_000  # validation images that are drawn because a stored config asks for them
_allowed = partial(is_registered, kinds=_STORED)
"""Return whether a checkpoint's config may name a target: only registered parts are built from a file."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """The content of a checkpoint."""

    path: Path
    config: dict[str, Any]
    classifier: Classifier
    examples: Examples | None
    state: VisualState


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint file of filterscope as plain data; nothing in it is executed.

    Raises:
        UserError: the file is damaged, holds more than plain data, or was not written by filterscope.
    """
    try:
        content = load_plain(path)
    except LOAD_ERRORS as error:
        raise UserError(f"{path} is not a readable checkpoint: {load_error_reason(error)}") from error
    about = content.get("filterscope") if isinstance(content, dict) else None
    if not isinstance(about, dict) or not {"config", "class_names", "image_size"} <= about.keys():
        raise UserError(f"{path} is not a checkpoint of filterscope: it holds no config, class names and image size")
    return content  # type: ignore[no-any-return]


def open_run(path: Path) -> Run:
    """Rebuild the network, examples and visual state of a checkpoint.

    Raises:
        UserError: it is damaged, its config names a target that is not registered, or its weights do not fit.
    """
    content = read_checkpoint(path)
    about = content["filterscope"]
    try:
        classifier = _classifier(about, content.get("state_dict"), path)
        examples = unpack_examples(about["examples"]) if "examples" in about else None
        _check_examples(examples, classifier)
        state = VisualState(store=dict(about["visual_state"]["store"])) if about.get("visual_state") else VisualState()
        state.store["source"] = {"name": _run_name(path), "date": date.fromtimestamp(path.stat().st_mtime).isoformat()}
    except UserError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{path} is damaged: it does not hold what a run stores ({reason})") from error
    return Run(path=path, config=about["config"], classifier=classifier, examples=examples, state=state)


def _run_name(path: Path) -> str:
    """Return the name of the run folder that a checkpoint is in, or of the file itself."""
    path = path.resolve()
    return printable(path.parent.parent.name if path.parent.name == "checkpoints" else path.name)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The network, the images and the state that `visualize.py` draws."""

    classifier: Classifier
    examples: Examples
    state: VisualState


def load_subject(cfg: dict[str, Any]) -> Subject:
    """Return the network and the images that a config of `visualize.py` chooses.

    The network is that of `ckpt`, or `model` as published. The images are those of `images`, else validation images of
    `data`, else the checkpoint's own (more of them from the data that it was trained on), else none.
    """
    register_named_model(cfg)
    run = open_run(find_checkpoint(cfg["ckpt"])) if cfg["ckpt"] else None
    classifier = run.classifier if run else build_published(cfg)
    nothing = torch.empty(0, classifier.in_channels, classifier.image_size or 0, classifier.image_size or 0)
    examples = Examples(images=nothing)
    if cfg["images"]:
        stored = run.config["data"] if run else cfg["data"]
        examples = _files(cfg["images"], classifier, stored.get("bit_depth"))
    elif "_target_" in cfg["data"]:
        if run:
            cfg["data"] |= {"image_size": classifier.image_size, "num_channels": classifier.in_channels}
        examples = examples_of(build_data(cfg, "predict"), cfg["num_examples"], cfg["seed"])
        if run and examples.class_names != classifier.class_names:
            log.warning("the classes of the data are not those of the network: the images are drawn without labels")
            examples = replace(examples, labels=None, more=None)
    elif run and run.examples:
        examples = replace(run.examples, more=partial(_of_the_same_data, run, seed=cfg["seed"]))
    return Subject(classifier=classifier, examples=examples, state=run.state if run else VisualState())


def load(path: str | Path) -> Classifier:
    """Return the classifier of a run folder or checkpoint as a plain `nn.Module`, in evaluation mode."""
    return open_run(find_checkpoint(str(path))).classifier.eval()


def build_pruned(cfg: dict[str, Any], data: ImageDataModule, folder: Path, pruning: Prune) -> Classifier:
    """Return the network of the run `model.weights` without the filters that `pruning` cuts out.

    A resumed run gets the network that its own checkpoint holds.

    Raises:
        UserError: the run holds another network or other classes, or its network cannot be cut.
    """
    source, own = str(cfg["model"]["weights"]), folder / "checkpoints"
    built = build_classifier({**cfg, "model": {**cfg["model"], "weights": None}}, data)
    begun = [path for path in (own / "midway.ckpt", own / "last.ckpt") if cfg["resume"] and path.is_file()]
    if begun:
        pruning.resume(folder)
        weights = load_checkpoint(begun[0], mmap=True)["state_dict"]
        fit_to_weights(built, {key.removeprefix("classifier."): tensor for key, tensor in weights.items()})
        built.backbone.pretrained, built.backbone.constructor = True, ""
        return built
    run = open_run(find_checkpoint(source))
    if run.classifier.state_dict().keys() != built.state_dict().keys():
        raise UserError(
            f"prune: {source} holds {run.classifier.backbone.name} with another head or other layers than "
            f"{built.backbone.name} here; give the model=…, head=… and data=… of that run"
        )
    if run.classifier.class_names != built.class_names:
        raise UserError(
            f"prune: {source} was trained on other classes than those of the data; give the data=… of that run"
        )
    cfg["model"]["num_classes"] = run.config["model"]["num_classes"]
    run.classifier.check_image_size(data.image_size)
    run.classifier.image_size = data.image_size
    run.classifier.backbone.pretrained = True
    pruning.cut(run.classifier, data, folder, write=is_first_process())
    return run.classifier


def _classifier(about: Mapping[str, Any], state_dict: Any, path: Path) -> Classifier:
    names, size = tuple(map(printable, about["class_names"])), int(about["image_size"])
    own = {key.removeprefix("classifier."): t for key, t in state_dict.items() if key.startswith("classifier.")}
    with on_meta_device():  # refuse a config that does not fit the weights before it takes memory
        _refuse_other_weights(_build(about["config"], len(names), path, own), own, path)
    classifier = _build(about["config"], len(names), path, own)
    classifier.load_state_dict(own)
    classifier.class_names, classifier.image_size = names, size
    if size < 1:
        raise ValueError(f"image_size={size}")
    return classifier


def _check_examples(examples: Examples | None, classifier: Classifier) -> None:
    """Raise a `ValueError` if stored examples are no images of the network's size with a label and a name each."""
    if examples is None:
        return
    images, size = examples.images, classifier.image_size
    if images.dim() != 4 or images.shape[1:] != (classifier.in_channels, size, size) or not images.isfinite().all():
        raise ValueError(f"example images of shape {tuple(images.shape)}")
    labels = examples.labels
    if labels is not None and (labels.shape != (len(images),) or labels.is_floating_point() or labels.is_complex()):
        raise ValueError("labels that are not those of the example images")
    if len(examples.names) not in (0, len(images)):
        raise ValueError("names that are not those of the example images")


def _build(config: Mapping[str, Any], num_classes: int, path: Path, weights: Mapping[str, Any]) -> Classifier:
    model = {**config["model"], "weights": None}
    backbone = instantiate(model, where=f"{path}: model", kind=Backbone, allowed=_allowed)
    head = instantiate(config["head"], where=f"{path}: head", kind=Classifier, as_partial=True, allowed=_allowed)
    classifier: Classifier = head(backbone, num_classes=num_classes)
    if config.get("prune"):
        fit_to_weights(classifier, weights)
    return classifier


def _refuse_other_weights(classifier: Classifier, weights: Mapping[str, Any], path: Path) -> None:
    wanted = classifier.state_dict()
    for name in (*wanted, *weights):
        if name not in weights or name not in wanted or getattr(weights[name], "shape", None) != wanted[name].shape:
            raise UserError(f"{path} is damaged: its weights are not those of its config: {name} differs")


def _of_the_same_data(run: Run, count: int, *, seed: int) -> Examples:
    """Return validation images of the data that a run was trained on, if it is still there; nothing is downloaded."""
    # The config may come from a stranger: it may name a folder of images, but must not download, write or spawn.
    harmless = {"download": False, "cache": None, "num_workers": 0, "num_train": 10, "num_test": 0}
    stored = {key: harmless.get(key, value) for key, value in run.config["data"].items()}
    stored["image_size"] = run.classifier.image_size
    if not isinstance(drawn := stored.get("num_val", 0), int) or drawn > MAX_DRAWN:
        raise UserError(f"{run.path} asks for {drawn!r:.20} drawn images, more than {MAX_DRAWN:,}")
    data: ImageDataModule = instantiate(stored, where=f"{run.path}: data", kind=ImageDataModule, allowed=_allowed)
    data.setup("predict")
    examples = examples_of(data, count, seed)
    if examples.class_names != run.classifier.class_names:
        raise UserError(
            f"{run.path} was trained on other classes than those of its data now; choose data=… or images=…"
        )
    return examples


def _files(paths: Sequence[str], classifier: Classifier, bit_depth: int | None) -> Examples:
    view = fixed_transform(image_size=classifier.image_size or 224, resize_ratio=1.0)
    channels, decoding = classifier.in_channels, Decoding(bit_depth=bit_depth)
    pixels = [view(read_image(str(Path(p).expanduser()), num_channels=channels, decoding=decoding)) for p in paths]
    names = tuple(Path(path).name for path in paths)
    return Examples(images=to_float(torch.stack(pixels)), names=names, class_names=classifier.class_names)
