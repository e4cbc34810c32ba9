"""Images listed in a CSV file, one row per image: file, label and optionally split."""

import csv
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from filterscope.data.datamodule import Fraction, ImageDataModule
from filterscope.data.folder import SPLIT_NAMES
from filterscope.data.images import DataSplits, Files
from filterscope.errors import UserError
from filterscope.registry import register


@register("data")
@dataclass(kw_only=True, eq=False, repr=False)
class CSVDataModule(ImageDataModule):
    """The images listed in a CSV file. Without the label column they can be visualized, not trained on.

    Args:
        csv: the CSV file, a path below `root` or any other path; separated by commas, semicolons or tabs.
        image_column: the column of image files.
        label_column: the column of labels, which may be any text.
        split_column: the column that says `train`, `val` or `test`; None: splits are cut off, stratified and seeded,
            as are validation images if no row says `val`.
        image_folder: the folder of the image files, a path below `root` or any other path; None: that of the CSV file.
        val_fraction: the fraction of validation images to cut off.
        test_fraction: the fraction of test images to cut off.
    """

    csv: str = "labels.csv"
    image_column: str = "filename"
    label_column: str = "label"
    split_column: str | None = None
    image_folder: str | None = None
    val_fraction: Fraction = 0.15
    test_fraction: Fraction = 0.15

    def find(self) -> DataSplits:
        """Read the CSV file and check that its images exist."""
        file = self._below_root(self.csv)
        rows = _read(file, needed=(self.image_column, *((self.split_column,) if self.split_column else ())))
        folder = file.parent if self.image_folder is None else self._below_root(self.image_folder)
        paths = [str(folder / row[self.image_column]) for row in rows]
        missing = [path for path in paths if not Path(path).is_file()]
        if missing:
            raise UserError(f"{file} names {len(paths)} files, {len(missing)} of them are not there: {missing[0]} …")
        if self.label_column not in rows[0]:
            return DataSplits(
                location=str(file),
                class_names=(),
                train=Files(paths=tuple(paths), labels=torch.full((len(paths),), -1)),
                unlabelled_reason=_no_column(file, self.label_column, rows[0]),
            )
        names, labels = _classes([row[self.label_column] for row in rows], file)
        images = Files(paths=tuple(paths), labels=labels)
        if self.split_column is None:
            held_out = {"val": self.val_fraction, "test": self.test_fraction}
            return DataSplits(location=str(file), class_names=names, train=images, held_out=held_out)
        parts = _split_by_column([row[self.split_column] for row in rows], file, images)
        if "train" not in parts:
            raise UserError(f"no row of {file} says train in the column {self.split_column!r}")
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


def _read(file: Path, needed: tuple[str, ...]) -> list[dict[str, str]]:
    if not file.is_file():
        raise UserError(f"there is no CSV file at {file}; give data.csv, a path below data.root or any other path")
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            header = stream.readline()
            stream.seek(0)
            delimiter = max(",;\t", key=header.count)
            rows = [{str(k): v or "" for k, v in row.items()} for row in csv.DictReader(stream, delimiter=delimiter)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} cannot be read as a CSV: {error}") from error
    if not rows:
        raise UserError(f"{file} has no rows")
    for column in needed:
        if column not in rows[0]:
            raise UserError(_no_column(file, column, rows[0]))
    return rows


def _no_column(file: Path, column: str, row: dict[str, str]) -> str:
    return f"{file} has no column {column!r}; its columns are {', '.join(row)}"


def _classes(values: list[str], file: Path) -> tuple[tuple[str, ...], Tensor]:
    if "" in values:
        raise UserError(f"row {values.index('') + 1} of {file} has no label")
    names = sorted(set(values))
    if all(name.isdecimal() for name in names):
        names.sort(key=int)
    label = {name: number for number, name in enumerate(names)}
    return tuple(names), torch.tensor([label[value] for value in values])


def _split_by_column(values: list[str], file: Path, images: Files) -> dict[str, Files]:
    known = {name: split for split, names in SPLIT_NAMES.items() for name in names}
    rows: dict[str, list[int]] = {}
    for number, value in enumerate(values):
        if value.strip().lower() not in known:
            raise UserError(
                f"row {number + 1} of {file} says {value!r} for its split; possible are {', '.join(SPLIT_NAMES)}"
            )
        rows.setdefault(known[value.strip().lower()], []).append(number)
    return {split: images.select(torch.tensor(part), images.labels[part]) for split, part in rows.items()}
