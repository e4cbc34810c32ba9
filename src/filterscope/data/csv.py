"""Images listed in a CSV file, one row per image: file, label and optionally split."""

import codecs
import csv
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath, PureWindowsPath
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from filterscope.data.datamodule import Fraction, ImageDataModule
from filterscope.data.folder import files_below, split_of
from filterscope.data.image_io import is_image
from filterscope.data.images import DataSplits, Files
from filterscope.errors import UserError, suggestion
from filterscope.registry import register

log = logging.getLogger(__name__)

_Rows = list[dict[str, str]]

_FLAGS = {"1": True, "1.0": True, "true": True, "yes": True, "0": False, "0.0": False, "false": False, "no": False}


@register("data")
@dataclass(kw_only=True, eq=False, repr=False)
class CSVDataModule(ImageDataModule):
    """The images listed in a CSV file. Without the label column they can be visualized, not trained on.

    Args:
        csv: the CSV file, a path below `root` or any other path; separated by commas, semicolons, tabs or bars.
        image_column: the column of image files; they may lack their extension, and may lie in folders below
            `image_folder` that the column does not name.
        label_column: the column of labels, which may be any text; or the columns of the classes, of which one is 1 in
            each row. If it is missing, but all other columns are 0 or 1, these are the classes.
        split_column: the column that says `train`, `val` or `test`, or 0 or 1 if it is called `is_train`, `is_valid` or
            `is_test`; None: splits are cut off, seeded, as are validation images if no row says `val`.
        image_folder: the folder of the image files, a path below `root` or any other path; None: that of the CSV file.
        val_fraction: the fraction of validation images to cut off.
        test_fraction: the fraction of test images to cut off.
    """

    csv: str = "labels.csv"
    image_column: str = "filename"
    label_column: str | Annotated[Sequence[str], Field(min_length=2)] = "label"
    split_column: str | None = None
    image_folder: str | None = None
    val_fraction: Fraction = 0.15
    test_fraction: Fraction = 0.15

    def find(self) -> DataSplits:
        """Read the CSV file and check that its images exist."""
        file = self._below_root(self.csv)
        rows = _read(file, needed=(self.image_column, *((self.split_column,) if self.split_column else ())))
        folder = file.parent if self.image_folder is None else self._below_root(self.image_folder)
        paths = _find_files([row[self.image_column] for row in rows], folder, file)
        labelled = self._labels(rows, file)
        if isinstance(labelled, str):
            unlabelled = Files(paths=paths, labels=torch.full((len(paths),), -1), root=str(folder))
            return DataSplits(location=str(file), class_names=(), train=unlabelled, unlabelled_reason=labelled)
        names, labels = labelled
        images = Files(paths=paths, labels=labels, root=str(folder))
        if self.split_column is None:
            held_out = {"val": self.val_fraction, "test": self.test_fraction}
            return DataSplits(location=str(file), class_names=names, train=images, held_out=held_out)
        splits = _splits([row[self.split_column] for row in rows], self.split_column, file)
        if "train" not in splits:
            raise UserError(f"no image of {file} is a training image by its column {self.split_column!r}")
        members = {split: torch.tensor([i for i, each in enumerate(splits) if each == split]) for split in set(splits)}
        parts = {split: images.select(indices, labels[indices]) for split, indices in members.items()}
        return DataSplits(
            location=str(file),
            class_names=names,
            train=parts["train"],
            val=parts.get("val"),
            test=parts.get("test"),
            held_out={"val": self.val_fraction, "test": 0.0},
        )

    def _below_root(self, name: str) -> Path:
        path = self.folder / Path(name).expanduser()
        return path if path.exists() else Path(name).expanduser()

    def _labels(self, rows: _Rows, file: Path) -> tuple[tuple[str, ...], Tensor] | str:
        """Return the names of the classes and each row's label, or why there are none."""
        others = [column for column in rows[0] if column not in (self.image_column, self.split_column)]
        if isinstance(self.label_column, str):
            if self.label_column in rows[0]:
                return _classes([row[self.label_column] for row in rows], file)
            columns = [column for column in others if all(row[column].lower() in _FLAGS for row in rows)]
            if len(columns) < 2 or columns != others:
                return _no_column(file, self.label_column, rows[0])
            log.info("%s has no column %r: its columns %s are the classes", file, self.label_column, ", ".join(columns))
        else:
            columns = list(self.label_column)
        for column in columns:
            if column not in rows[0]:
                raise UserError(_no_column(file, column, rows[0]))
        chosen = [[column for column in columns if _FLAGS.get(row[column].lower())] for row in rows]
        for number, each in enumerate(chosen, start=1):
            if len(each) != 1:
                raise UserError(f"row {number} of {file} is of {len(each)} classes, not of one of {', '.join(columns)}")
        return tuple(columns), torch.tensor([columns.index(each[0]) for each in chosen])


def _read(file: Path, needed: tuple[str, ...]) -> _Rows:
    if not file.is_file():
        raise UserError(f"there is no CSV file at {file}; give data.csv, a path below data.root or any other path")
    try:
        content = _decode(file)
        if "\0" in content:
            raise UserError(f"{file} is not a text file, so not a CSV file")
        lines = content.splitlines(keepends=True)
        tables = [list(csv.reader(lines, delimiter=each, skipinitialspace=True)) for each in ",;\t|"]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} cannot be read as a CSV: {error}") from error
    stripped = [[[value.strip() for value in row] for row in table if any(map(str.strip, row))] for table in tables]
    table = max(stripped, key=lambda table: (needed[0] in table[0], len(table[0])) if table else (False, 0))
    if len(table) < 2:
        raise UserError(f"{file} has no rows")
    header, *body = table
    repeated = next((column for column in header if column and header.count(column) > 1), None)
    if repeated is not None:
        raise UserError(f"{file} has two columns {repeated!r}; rename one of them")
    rows = [dict(zip(header, row + [""] * (len(header) - len(row)), strict=False)) for row in body]
    for column in needed:
        if column not in rows[0]:
            headless = any((file.parent / value).is_file() for value in header)
            option = "image_column" if column == needed[0] else "split_column"
            raise UserError(
                _no_column(file, column, rows[0], option) + headless * "; its first line must name the columns"
            )
    return rows


def _decode(file: Path) -> str:
    content = file.read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        log.info("%s is not in UTF-8: it is read as Windows-1252", file)
        return content.decode("cp1252", errors="replace")


def _find_files(names: Sequence[str], folder: Path, file: Path) -> tuple[str, ...]:
    """Return the path of each file, also of those without extension or in a folder below that is not named."""
    paths = [str(folder / name) for name in names]
    missing = [number for number, path in enumerate(paths) if not Path(path).is_file()]
    below: dict[str, list[str]] = {}
    for path in files_below(folder) if missing and folder.is_dir() else ():
        for key in {PurePath(path).name.lower(), PurePath(path).stem.lower()} if is_image(path) else ():
            below.setdefault(key, []).append(path)
    for number in list(missing):
        parts = PureWindowsPath(names[number]).parts  # splits at both kinds of slashes
        found = [path for path in below.get(parts[-1].lower(), ()) if _lies_in(path, parts)] if parts else []
        if len(found) > 1:
            raise UserError(f"{file} names {names[number]!r}, which may be {found[0]} or {found[1]}")
        if found:
            paths[number] = found[0]
            missing.remove(number)
    if missing:
        raise UserError(
            f"{file} names {len(paths)} files, {len(missing)} of them are not there: {paths[missing[0]]} …; "
            "data.image_folder is the folder of the files"
        )
    return tuple(paths)


def _lies_in(path: str, parts: tuple[str, ...]) -> bool:
    """Return whether a file lies in folders of the names that precede its own in `parts`, in any case."""
    above = [each.lower() for each in parts[:-1]]
    return not above or [each.lower() for each in Path(path).parts[:-1]][-len(above) :] == above


def _no_column(file: Path, column: str, row: dict[str, str], option: str = "label_column") -> str:
    there = f"its columns are {', '.join(row)} (data.{option})"
    return f"{file} has no column {column!r}{suggestion(column, row)}; {there}"


def _classes(values: list[str], file: Path) -> tuple[tuple[str, ...], Tensor]:
    if "" in values:
        raise UserError(f"row {values.index('') + 1} of {file} has no label")
    names = sorted(set(values))
    if all(re.fullmatch(r"[-+]?\d+(\.\d*)?", name) for name in names):
        names.sort(key=float)
    label = {name: number for number, name in enumerate(names)}
    return tuple(names), torch.tensor([label[value] for value in values])


def _splits(values: list[str], column: str, file: Path) -> list[str]:
    """Return the split of each row."""
    named = split_of(re.sub(r"^is[\W_]*", "", column.lower()))
    if named and all(value.lower() in _FLAGS for value in values):
        other = "test" if named == "train" else "train"
        return [named if _FLAGS[value.lower()] else other for value in values]
    splits = [split_of(value) for value in values]
    if None in splits:
        number = splits.index(None)
        said = f"row {number + 1} of {file} says {values[number]!r} for its split"
        raise UserError(f"{said}; possible are {'0 and 1' if named else 'train, val, test'}")
    return [split for split in splits if split]
