"""Images in class folders: train/valid/test folders of class folders, or one folder of class folders to split."""

import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from filterscope.data.datamodule import Fraction, ImageDataModule
from filterscope.data.images import DataSplits, Files
from filterscope.errors import UserError
from filterscope.registry import register

log = logging.getLogger(__name__)

SPLIT_NAMES = {"train": ("train", "training"), "val": ("valid", "val", "validation"), "test": ("test", "testing")}

_NO_IMAGES = {"Thumbs.db", "desktop.ini"}  # written by file managers, besides names that begin with a dot


@register("data")
@dataclass(kw_only=True, eq=False, repr=False)
class FolderDataModule(ImageDataModule):
    """Images in one folder per class, directly below `root` or below its `train`, `valid` and `test` folders.

    Classes are named after their folders, or by a `cat_to_name.json`. A missing validation split is cut from the
    training images, stratified and seeded; a missing test split only if there are no split folders at all.
    """

    val_fraction: Fraction = 0.15
    test_fraction: Fraction = 0.15

    def find(self) -> DataSplits:
        """List the class folders and their images."""
        if not self.folder.is_dir():
            raise UserError(f"data.root={self.root}: there is no such folder")
        splits = split_folders(self.folder)
        if splits and "train" not in splits:
            raise UserError(f"{self.folder} has {', '.join(p.name for p in splits.values())} but no train folder")
        order, files = split_files(splits or {"train": self.folder})
        return DataSplits(
            location=str(splits.get("train", self.folder)),
            class_names=display_names(order, self.folder),
            train=files["train"],
            val=files.get("val"),
            test=files.get("test"),
            held_out={"val": self.val_fraction, "test": 0.0 if splits else self.test_fraction},
        )


def class_folders(folder: Path) -> tuple[str, ...]:
    """Return the names of a folder's class folders, ordered by name, or numerically if all names are numbers.

    Raises:
        UserError: the folder does not exist or contains no folders.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give data.root")
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    if not names:
        raise UserError(f"{folder} holds no class folders; images lie in one folder for each class")
    return tuple(sorted(names, key=int) if all(name.isdecimal() for name in names) else names)


def labelled_files(folder: Path, classes: tuple[str, ...]) -> Files:
    """Return the images of a folder's class folders, with labels that index `classes`.

    Raises:
        UserError: a class folder is not among `classes`.
    """
    paths: list[str] = []
    labels: list[int] = []
    for name in class_folders(folder):
        if name not in classes:
            raise UserError(f"{folder} has a class folder {name!r} that the training images do not have")
        found = list_files(folder / name)
        paths += found
        labels += [classes.index(name)] * len(found)
    return Files(paths=tuple(paths), labels=torch.tensor(labels, dtype=torch.int64))


def split_files(splits: Mapping[str, Path]) -> tuple[tuple[str, ...], dict[str, Files]]:
    """Return the names of the training class folders, and the images of each split.

    A test folder with images but without class folders has no labels; it is left out with a log line.
    """
    classes = class_folders(splits["train"])
    files = {}
    for split, folder in splits.items():
        if split == "test" and not any(entry.is_dir() for entry in folder.iterdir()):
            log.info("no test split: %s holds no class folders", folder)
            continue
        files[split] = labelled_files(folder, classes)
    return classes, files


def list_files(folder: Path) -> list[str]:
    """Return the paths of all files below a folder, sorted, without hidden ones."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [os.path.join(parent, n) for n in sorted(files) if not n.startswith(".") and n not in _NO_IMAGES]  # noqa: PTH118 (a million of them)
    return found


def split_folders(root: Path) -> dict[str, Path]:
    """Return the folders below `root` that hold the splits `train`, `val` and `test`, as far as they exist."""
    present = {split: [root / n for n in names if (root / n).is_dir()] for split, names in SPLIT_NAMES.items()}
    return {split: found[0] for split, found in present.items() if found}


def display_names(folders: tuple[str, ...], root: Path, otherwise: Callable[[str], str] = str) -> tuple[str, ...]:
    """Return the class names of folders from a `cat_to_name.json` in `root` or beside it.

    The file maps the names of folders to names of classes; the position of a folder does not matter.

    Args:
        folders: names of class folders.
        root: where the file may lie.
        otherwise: names a class if there is no such file.

    Raises:
        UserError: the file is damaged or lacks a folder.
    """
    file = next((p for p in (root / "cat_to_name.json", root.parent / "cat_to_name.json") if p.is_file()), None)
    if file is None:
        return tuple(otherwise(folder) for folder in folders)
    try:
        names = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not readable as JSON: {error}") from error
    unnamed = [folder for folder in folders if not isinstance(names, dict) or folder not in names]
    if unnamed:
        raise UserError(f"{file} has no name for the class folder {unnamed[0]!r}")
    return tuple(str(names[folder]) for folder in folders)
