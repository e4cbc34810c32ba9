"""Images in class folders: train/valid/test folders of class folders, or one folder of class folders to split."""

import itertools
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch

from filterscope.data.datamodule import Fraction, ImageDataModule
from filterscope.data.image_io import is_image
from filterscope.data.images import DataSplits, Files
from filterscope.errors import UserError, printable, suggestion
from filterscope.registry import register

log = logging.getLogger(__name__)

_SPLITS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "dev", "eval", "evaluation"),
    "test": ("test", "testing", "tst"),
}
# Words and numbers that may stand beside the name of a split: `train_set`, `images_val`, `val2017`.
_BESIDE_SPLIT = "set|data|dataset|split|folder|images?|imgs?|photos?|pictures?|files"
_SPLIT_NAME = re.compile(
    rf"(?:{_BESIDE_SPLIT}|\d+)*(?P<word>{'|'.join(itertools.chain(*_SPLITS.values()))})(?:{_BESIDE_SPLIT}|\d+)*"
)
# What operating systems, file managers and network drives write, besides names that begin with a dot.
_SYSTEM = {
    "thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found",
    "__pycache__",
}  # fmt: skip
_MAX_WRAPPERS = 4  # folders that hold nothing but one folder, such as flower_data/flower_data/train


@register("data")
@dataclass(kw_only=True, eq=False, repr=False)
class FolderDataModule(ImageDataModule):
    """Images in one folder per class, directly below `root` or below its folders of the splits.

    `train`, `Training`, `train_set`, `train2017` … are folders of a split, in any case. Classes are named after their
    folders, or by a `cat_to_name.json`. A missing validation split is cut from the training images by a hash of the
    files' own names; a missing test split only if there are no split folders at all.
    """

    val_fraction: Fraction = 0.15
    test_fraction: Fraction = 0.15

    def find(self) -> DataSplits:
        """List the class folders and their images."""
        if not self.folder.is_dir():
            raise UserError(f"data.root={self.root}: there is no such folder")
        layout = find_layout(self.folder, exclude=[str(name) for name in self.exclude])
        if layout.splits and "train" not in layout.splits:
            names = ", ".join(folder.name for folder in layout.splits.values())
            raise UserError(
                f"{layout.folder} has {names} but no train folder; rename the folder of the training images to train"
            )
        order, files = split_files(layout.splits or {"train": layout.folder})
        return DataSplits(
            location=layout.location,
            class_names=display_names(order, layout.folder, self.folder),
            train=files["train"],
            val=files.get("val"),
            test=files.get("test"),
            held_out={"val": self.val_fraction, "test": 0.0 if layout.splits else self.test_fraction},
        )


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where class folders lie: below the folders of `splits`, or directly below `folder` if there are none."""

    folder: Path
    splits: Mapping[str, Path] = field(default_factory=dict)

    @property
    def location(self) -> str:
        """The folder and what was taken for a split, for messages."""
        taken = ", ".join(f"{split}: {folder.name}" for split, folder in self.splits.items())
        return f"{self.folder} ({taken})" if taken else str(self.folder)


def find_layout(root: Path, *, exclude: Collection[str] = ()) -> Layout:
    """Find the split folders or class folders in `root`, or in the one folder below it that holds images.

    Args:
        root: an existing folder.
        exclude: names of folders that are neither a class nor a split.

    Raises:
        UserError: two folders are the same split, or it cannot be told whether a folder is a split or a class.
    """
    folder = root
    for _ in range(_MAX_WRAPPERS):
        inside = [each for each in subfolders(folder) if each.name not in exclude]
        splits = _split_folders(folder, inside)
        if splits:
            unused = [each.name for each in inside if each not in splits.values()]
            if unused:
                log.info("not used, because they lie beside the splits of %s: %s", folder, ", ".join(unused))
            return Layout(folder=folder, splits=splits)
        holding = [each for each in inside if _holds_images(each)]
        if len(holding) != 1 or not subfolders(holding[0]):
            break
        folder = holding[0]
    return Layout(folder=folder)


def split_of(name: str) -> str | None:
    """Return the split, `train`, `val` or `test`, that a name stands for in any case (`Training`, `val_set` …)."""
    found = _SPLIT_NAME.fullmatch(re.sub(r"[\W_]+", "", name.lower()))
    return next((split for split, names in _SPLITS.items() if found and found["word"] in names), None)


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted by name, without hidden ones and those of the operating system.

    Raises:
        UserError: the folder may not be read.
    """
    try:
        with os.scandir(folder) as entries:
            return [folder / name for name in sorted(e.name for e in entries if not _is_system(e.name) and e.is_dir())]
    except OSError as error:
        _raise_unreadable(error)


def class_folders(folder: Path) -> tuple[str, ...]:
    """Return the names of a folder's class folders, ordered by name, or numerically if all names are numbers.

    Raises:
        UserError: the folder does not exist or contains no folders, or its folders are splits of other folders.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give data.root")
    inside = subfolders(folder)
    names = [each.name for each in inside]
    if not names:
        raise UserError(f"{folder} holds no class folders; images lie in one folder for each class")
    _refuse_splits_of_others(folder, inside)
    return tuple(sorted(names, key=int) if all(name.isdecimal() for name in names) else names)


def labelled_files(folder: Path, classes: tuple[str, ...]) -> Files:
    """Return the images of a folder's class folders, with labels that index `classes`.

    Raises:
        UserError: a class folder is not among `classes`, or a folder may not be read.
    """
    paths: list[str] = []
    labels: list[int] = []
    others: list[str] = []
    for name in class_folders(folder):
        if name not in classes:
            raise UserError(
                f"{folder} has a class folder {name!r} that the training images do not have{suggestion(name, classes)}"
            )
        below: set[str] = set()
        for path in files_below(folder / name):
            if is_image(path):
                paths.append(path)
                labels.append(classes.index(name))
                below.add(os.path.dirname(path))  # noqa: PTH120 (a million of them)
            else:
                others.append(path)
        inside = sorted(os.path.relpath(each, folder) for each in below - {str(folder / name)})
        if inside:
            log.info("the class %s includes the images in %s", printable(name), printable(", ".join(inside)))
    beside = sorted(str(each) for each in folder.iterdir() if each.is_file() and not _is_system(each.name))
    beside = list(filter(is_image, beside))
    if beside:
        lie = "%d images lie in no class folder and are not used, the first: %s"
        log.info(lie, len(beside), printable(beside[0]))
    if others:
        kinds = Counter(Path(path).suffix.lower() or "no extension" for path in others)
        counted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5))
        log.info(
            "left out %d files that are not images (%s), the first: %s", len(others), counted, printable(others[0])
        )
    return Files(paths=tuple(paths), labels=torch.tensor(labels, dtype=torch.int64), root=str(folder))


def split_files(splits: Mapping[str, Path]) -> tuple[tuple[str, ...], dict[str, Files]]:
    """Return the names of the training class folders, and the images of each split.

    A test folder with images but without class folders, or with one folder that is no class, such as `test/unknown`,
    has no labels; it is left out with a log line.
    """
    classes = class_folders(splits["train"])
    files = {}
    for split, folder in splits.items():
        inside = [each.name for each in subfolders(folder)]
        if split == "test" and len(inside) < 2 and not set(inside) & set(classes):
            log.info("no test split: the images in %s are in no folder of a class", folder)
            continue
        files[split] = labelled_files(folder, classes)
    return classes, files


def display_names(
    folders: tuple[str, ...], place: Path, root: Path, otherwise: Callable[[str], str] = str
) -> tuple[str, ...]:
    """Return the class names of folders from a `cat_to_name.json` in or beside the data.

    The file maps the names of folders to names of classes; the position of a folder does not matter. Classes of one
    name are told apart by their folders.

    Args:
        folders: names of class folders.
        place: the folder of the classes or splits.
        root: the folder above it that was given; the file lies in one of these two, between them or beside `root`.
        otherwise: names a class if there is no such file.

    Raises:
        UserError: the file is damaged or lacks a folder.
    """
    above = [place, *(each for each in place.parents if each == root or root in each.parents), root.parent]
    file = next((each / "cat_to_name.json" for each in above if (each / "cat_to_name.json").is_file()), None)
    if file is None:
        return tuple(otherwise(folder) for folder in folders)
    try:
        names = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is not readable as JSON: {error}") from error
    named = _by_folder(names, folders) if isinstance(names, dict) else {}
    unnamed = [folder for folder in folders if folder not in named]
    if unnamed:
        raise UserError(
            f"{file} has no name for the class folder {unnamed[0]!r}; it must map folders to names, "
            f'{{"{unnamed[0]}": "name of the class", …}}'
        )
    repeated = {name for name, count in Counter(named[folder] for folder in folders).items() if count > 1}
    if repeated:
        log.info("%s names several folders alike, they stay classes of their own: %s", file, ", ".join(repeated))
    return tuple(f"{named[f]} ({f})" if named[f] in repeated else named[f] for f in folders)


def _by_folder(names: Mapping[str, Any], folders: Collection[str]) -> dict[str, str]:
    """Return the names by folder, also if leading zeros differ, or if the file maps names to folders."""
    if folders and all(str(value) in folders for value in names.values()) and not set(folders) <= set(names):
        names = {str(value): key for key, value in names.items()}
    numbers = {int(key): name for key, name in names.items() if key.isdecimal()}
    found = {f: names.get(f, numbers.get(int(f)) if f.isdecimal() else None) for f in folders}
    known = {folder: str(name) for folder, name in found.items() if type(name) in (str, int)}
    return {folder: name for folder, name in known.items() if name.strip()}


def _split_folders(folder: Path, inside: list[Path]) -> dict[str, Path]:
    """Return the folders of the splits; empty if the folders are classes or nothing is known about them."""
    found: dict[str, list[Path]] = {}
    for each in inside:
        split = split_of(each.name)
        if split:
            found.setdefault(split, []).append(each)
    nested = {split: [each for each in folders if subfolders(each)] for split, folders in found.items()}
    if not any(nested.values()):
        # A class may be called "train", but images of a class called "test" are rather images without labels.
        flat = [each.name for split in ("val", "test") for each in found.get(split, [])]
        if flat and len(inside) > sum(map(len, found.values())):
            raise UserError(
                f"{folder} has class folders and a folder {flat[0]!r}, which is a class or a split; "
                f"rename it, or leave it out with data.exclude=[{flat[0]}]"
            )
        if found and len(inside) == sum(map(len, found.values())) and any(map(_holds_images, inside)):
            raise UserError(f"{inside[0]} holds no class folders; images lie in one folder for each class")
        return {}
    if nested.get("train"):
        nested["test"] = nested.get("test") or found.get("test", [])
    for split, folders in nested.items():
        if len(folders) > 1:
            names = " and ".join(each.name for each in folders)
            raise UserError(f"{folder} has two folders for the split {split}: {names}; rename one of them")
    return {split: nested[split][0] for split in _SPLITS if nested.get(split)}


def _refuse_splits_of_others(folder: Path, inside: list[Path]) -> None:
    """Raise a `UserError` if "classes" hold the same folders, as in `part1/cat part1/dog part2/cat part2/dog`."""
    owners: dict[str, list[Path]] = {}
    for each in inside:
        for below in subfolders(each):
            owners.setdefault(below.name, []).append(each)
    shared = [name for name, of in owners.items() if len(of) > 1]
    if len(shared) < 2:
        return
    first, second, *_ = owners[shared[0]]
    if all(map(split_of, shared)):
        possible = f"put the splits first, as in {shared[0]}/{first.name}"
    else:
        possible = (
            f"if {shared[0]} is a class, name the folders above it train, valid and test, or give one as data.root"
        )
    raise UserError(
        f"{first.name} and {second.name} in {folder} both hold the folders {', '.join(shared[:5])}, so they do not "
        f"look like classes; {possible}; or list the images with data=csv"
    )


def _holds_images(folder: Path) -> bool:
    return any(map(is_image, files_below(folder)))


def files_below(folder: Path) -> Iterator[str]:
    """Yield the paths of all files below a folder, sorted, without hidden ones; links are followed, but not twice.

    Raises:
        UserError: the folder or one below it may not be read.
    """
    seen = set()
    for parent, folders, files in os.walk(folder, onerror=_raise_unreadable, followlinks=True):
        about = os.stat(parent)  # noqa: PTH116 (a million of them)
        if (about.st_dev, about.st_ino) in seen:
            folders.clear()
            continue
        seen.add((about.st_dev, about.st_ino))
        folders[:] = sorted(name for name in folders if not _is_system(name))
        yield from (os.path.join(parent, name) for name in sorted(files) if not _is_system(name))  # noqa: PTH118


def _is_system(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM


def _raise_unreadable(error: OSError) -> NoReturn:
    raise UserError(f"the folder {error.filename} cannot be read: {error.strerror or error}") from error
