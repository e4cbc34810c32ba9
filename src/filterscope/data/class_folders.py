"""Folders of class folders: which images they hold, in an order that is the same on every machine."""

import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from filterscope.data.images import Files
from filterscope.errors import UserError

log = logging.getLogger(__name__)

SPLITS = {"train": ("train", "training"), "val": ("valid", "val", "validation"), "test": ("test", "testing")}

_NO_IMAGES = {"Thumbs.db", "desktop.ini"}  # what file managers leave behind, beside names that begin with a dot


@dataclass(frozen=True, kw_only=True)
class ClassFolders:
    """The class folders of a place, ordered by name, or by number where all of them are numbers."""

    place: Path
    folders: tuple[str, ...]

    def files(self, order: tuple[str, ...]) -> Files:
        """Return the images of these folders; labels are places in `order`, a folder that is not in it is an error."""
        paths: list[str] = []
        labels: list[int] = []
        for folder in self.folders:
            if folder not in order:
                raise UserError(f"{self.place} has a class folder {folder!r} that the training images do not have")
            found = list_files(self.place / folder)
            paths += found
            labels += [order.index(folder)] * len(found)
        return Files(paths=tuple(paths), labels=torch.tensor(labels, dtype=torch.int64))


def class_folders(place: Path) -> ClassFolders:
    """List the class folders of a place.

    Raises:
        UserError: there is no such folder, or it holds no folders.
    """
    if not place.is_dir():
        raise UserError(f"there is no folder {place}; give data.root")
    with os.scandir(place) as entries:
        names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    if not names:
        raise UserError(f"{place} holds no class folders; images lie in one folder for each class")
    if all(name.isdecimal() for name in names):
        names.sort(key=int)
    return ClassFolders(place=place, folders=tuple(names))


def split_files(places: Mapping[str, Path]) -> tuple[tuple[str, ...], dict[str, Files]]:
    """Return the class folders' names and the images of each split, with labels in the order of `train`'s folders.

    A test folder that holds images but no class folders has no labels: it is left out, and a log line says so.
    """
    train = class_folders(places["train"])
    files = {}
    for split, place in places.items():
        if split == "test" and not any(entry.is_dir() for entry in place.iterdir()):
            log.info("no test split: %s holds no class folders", place)
            continue
        files[split] = class_folders(place).files(train.folders)
    return train.folders, files


def list_files(folder: Path) -> list[str]:
    """Return the paths of all files below a folder, sorted, without hidden ones."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [os.path.join(parent, n) for n in sorted(files) if not n.startswith(".") and n not in _NO_IMAGES]  # noqa: PTH118 (a million of them)
    return found


def split_folders(root: Path) -> dict[str, Path]:
    """Return where `train`, `val` and `test` lie below `root` under one of their usual names, if they do."""
    present = {split: [root / n for n in names if (root / n).is_dir()] for split, names in SPLITS.items()}
    return {split: found[0] for split, found in present.items() if found}


def display_names(folders: tuple[str, ...], root: Path, otherwise: Callable[[str], str] = str) -> tuple[str, ...]:
    """Return the names of class folders: those in a `cat_to_name.json` in `root` or beside it, else `otherwise`'s.

    The folder's own name is looked up, never its place among the sorted folders.

    Raises:
        UserError: the file is damaged or does not name a folder.
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
