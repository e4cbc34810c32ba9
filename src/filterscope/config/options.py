"""Check what can be checked without torch: options at the config's root, those of the Trainer, and paths."""

import glob
import itertools
import mimetypes
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from filterscope.errors import UserError, as_written
from filterscope.registry import check_value

_Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
_Text: TypeAlias = Annotated[str, Field(min_length=1)]
_Format: TypeAlias = Literal["state_dict", "tensors", "safetensors", "onnx", "torch_export"]
_Limit: TypeAlias = PositiveInt | Annotated[float, Field(gt=0, le=1)] | None

ROOT: dict[str, Any] = {
    "seed": Annotated[int, Field(ge=0, le=2**32 - 1)],
    "num_examples": NonNegativeInt,
    "label_smoothing": _Share,
    "class_weights": Literal["balanced"] | None,
    "channels_last": bool | None,
    "compile": bool,
    "export": _Format | list[_Format] | None,
    "ckpt": _Text | None,
    "feature_cache": _Text | None,
    "runs": _Text | Annotated[list[str | None], Field(min_length=1)] | None,
    "open": bool,
    "serve": bool | Annotated[int, Field(ge=1, le=65535)],
}
TEST: dict[str, Any] = {"augment": Literal["flip", "five_crop"] | None}
SCHEDULE: dict[str, Any] = {"interval": Literal["step", "epoch"]}
TRAINER: dict[str, Any] = {
    "max_epochs": NonNegativeInt,
    "num_nodes": PositiveInt,
    "precision": Literal["auto", "32-true", "bf16-mixed", "16-mixed"],
    "deterministic": bool | Literal["warn"],
    "accumulate_grad_batches": PositiveInt,
    "check_val_every_n_epoch": PositiveInt | None,
    "gradient_clip_val": NonNegativeFloat | None,
    **dict.fromkeys(("limit_train_batches", "limit_test_batches"), _Limit),
    "limit_val_batches": _Limit | Literal[0],
}
"""Where filterscope accepts less than `pytorch_lightning.Trainer` declares."""

_MOST_IMAGES = 1000
_MOST_FILES = 100_000  # among which images are looked for
_GROUPS = ("model", "head", "finetune", "optimizer", "schedule", "trainer", "mix", "test")


def check_config(cfg: Mapping[str, Any]) -> None:
    """Check groups and options before anything heavy is imported.

    Raises:
        UserError: a group has no content, or an option has the wrong type or lies out of range.
    """
    for group in _GROUPS:
        node = cfg.get(group)
        if group in cfg and not (isinstance(node, Mapping) and node):
            raise UserError(f"{group}={as_written(node)}: choose one of the group's options, or set {group}.<option>=…")
        if node and group != "test" and "_target_" not in node:
            raise UserError(f"{group} has no _target_: choose one of the group's options")
    for group in ("callbacks", "visuals", "logger", "prune"):
        node = cfg.get(group, {})
        if not isinstance(node, Mapping) and (node is not None or group == "callbacks"):
            raise UserError(f"{group}={as_written(node)}: choose options of the group, {group}=[…]")
    weights = cfg.get("model", {}).get("weights")
    if cfg.get("prune") and weights in (None, "imagenet"):
        raise UserError(f"prune starts from a trained run: give model.weights=outputs/<run>, not {weights or 'null'}")
    for group, hints in {"": ROOT, "test": TEST, "schedule": SCHEDULE, "trainer": TRAINER}.items():
        options = cfg.get(group, {}) if group else cfg
        for key, hint in hints.items():
            if key in options:
                check_value(options[key], hint, where=f"{group}.{key}".lstrip("."))


def check_paths(cfg: dict[str, Any]) -> None:
    """Check that the files and folders named in the config exist, and replace `images` by a list of files.

    Raises:
        UserError: one does not exist, or there are too many images.
    """
    weights = (cfg.get("model") or {}).get("weights")
    in_run = f"{weights}/checkpoints/best.ckpt"
    if weights not in (None, "imagenet") and not _exists(weights) and not _exists(in_run):
        raise UserError(f"no weights file at {weights} (model.weights is a path, a run folder, imagenet or null)")
    if cfg.get("images"):
        cfg["images"] = list(_images(cfg["images"] if isinstance(cfg["images"], list) else [cfg["images"]]))
        if len(cfg["images"]) > _MOST_IMAGES:
            raise UserError(f"images are {len(cfg['images'])} files, more than the {_MOST_IMAGES} that can be drawn")
    if isinstance(cfg.get("ckpt"), str) and cfg["ckpt"] and not cfg.get("serve"):
        find_checkpoint(cfg["ckpt"])
    data = cfg.get("data") or {}
    if str(data.get("_target_", "")).endswith(".FolderDataModule") and not _exists(data.get("root"), Path.is_dir):
        raise UserError(f"data.root={data.get('root')}: there is no such folder")


def _images(places: list[Any]) -> Iterator[str]:
    """Yield the image files that `images` names: files, patterns such as `photos/*.jpg`, and folders."""
    for place in places:
        path = os.path.expanduser(place) if isinstance(place, str) and "\0" not in place else ""  # noqa: PTH111
        if _exists(path):
            yield path
            continue
        pattern = f"{glob.escape(path)}/**/*" if Path(path).is_dir() and path else path
        entries = list(itertools.islice(glob.iglob(pattern, recursive=True), _MOST_FILES))  # noqa: PTH207 (begins anywhere)
        if len(entries) == _MOST_FILES:
            raise UserError(f"images={place}: more than {_MOST_FILES:,} files lie there; name a smaller folder")
        found = filter(_exists, sorted(entries))
        files = [each for each in found if str(mimetypes.guess_type(each)[0]).startswith("image/")]
        if not files:
            raise UserError(
                f"no image at {place} (images is a list of files, folders and patterns, images=[photo.jpg], or null)"
            )
        yield from files


def _exists(path: Any, kind: Callable[[Path], bool] = Path.is_file) -> bool:
    """Return whether there is a file, or something else that `kind` tests, at a path from the config."""
    try:
        return isinstance(path, str) and kind(Path(path).expanduser())
    except (RuntimeError, ValueError):  # an unknown ~user, or a null character
        return False


def find_checkpoint(ckpt: str, outputs: Path = Path("outputs")) -> Path:
    """Return the checkpoint file: a given file, a run folder's `best.ckpt`, or that of the newest run for `latest`.

    Raises:
        UserError: there is none.
    """
    if ckpt == "latest":
        found = sorted(outputs.glob("**/checkpoints/best.ckpt"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise UserError(f"ckpt=latest: no run with a checkpoint below {outputs}")
        return found[-1]
    path = Path(ckpt).expanduser()
    if path.is_dir():
        best = path / "checkpoints" / "best.ckpt"
        if not best.is_file():
            raise UserError(f"{path} is not a run folder with a checkpoint: there is no {best}")
        return best
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}; give a run folder, a .ckpt file or latest")
    return path


def find_runs(asked: str | Sequence[str | None]) -> dict[str, Path | None]:
    """Return the folders of runs by the shortest names that tell them apart.

    Args:
        asked: run folders, or folders with runs below them (a sweep); None among them is the published network.

    Raises:
        UserError: a folder holds no run, or there are fewer than two runs in all.
    """
    found: list[Path | None] = []
    for each in [asked] if isinstance(asked, str) else asked:
        if each is None:
            found.append(None)
            continue
        below = sorted(Path(each).expanduser().glob("**/checkpoints/best.ckpt"))
        if not below:
            raise UserError(f"runs: there is no run with a checkpoint in {each}; give run folders, or that of a sweep")
        found += [path.parent.parent for path in below]
    folders = [each.resolve() for each in found if each is not None]
    different = len(set(folders)) + (None in found)
    if len(found) < 2 or different < len(found):
        raise UserError(f"runs: {different} different run(s) found; give at least two, each once")
    shared = Path(os.path.commonpath([folder.parent for folder in folders]))
    return {"published network" if each is None else str(each.resolve().relative_to(shared)): each for each in found}
