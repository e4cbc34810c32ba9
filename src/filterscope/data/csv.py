"""Images that a CSV names, one row for each: file, label and, if wanted, split."""

import csv
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from filterscope.data.class_folders import SPLITS
from filterscope.data.datamodule import ImageDataModule
from filterscope.data.images import DataSplits, Files
from filterscope.errors import UserError
from filterscope.registry import register


@register("data")
@dataclass(kw_only=True, eq=False, repr=False)
class CSVDataModule(ImageDataModule):
    """The images named in the column `image_column` of the file `csv`, with labels of any kind in `label_column`.

    `csv` and `image_folder` are paths below `root`, or paths of their own; without `image_folder` the names are taken
    from the CSV's folder. `split_column` says `train`, `val` or `test` for each row; without it, and for a validation
    split that no row names, images are cut off, stratified and seeded. A CSV without the label column can be looked
    at, not trained on.
    """

    csv: str = "labels.csv"
    image_column: str = "filename"
    label_column: str = "label"
    split_column: str | None = None
    image_folder: str | None = None
    val_fraction: float = 0.15
    test_fraction: float = 0.15

    def find(self) -> DataSplits:
        """Read the CSV and look for its files."""
        file = self._below_root(self.csv)
        rows = _read(file, needed=(self.image_column, *((self.split_column,) if self.split_column else ())))
        folder = file.parent if self.image_folder is None else self._below_root(self.image_folder)
        paths = [str(folder / row[self.image_column]) for row in rows]
        missing = [path for path in paths if not Path(path).is_file()]
        if missing:
            raise UserError(f"{file} names {len(paths)} files, {len(missing)} of them are not there: {missing[0]} …")
        if self.label_column not in rows[0]:
            nothing = torch.full((len(paths),), -1)
            return DataSplits(
                place=str(file),
                class_names=(),
                train=Files(paths=tuple(paths), labels=nothing),
                unlabelled=_no_column(file, self.label_column, rows[0]),
            )
        names, labels = _classes([row[self.label_column] for row in rows], file)
        whole = Files(paths=tuple(paths), labels=labels)
        if self.split_column is None:
            held_out = {"val": self.val_fraction, "test": self.test_fraction}
            return DataSplits(place=str(file), class_names=names, train=whole, held_out=held_out)
        parts = _parts([row[self.split_column] for row in rows], file, whole)
        if "train" not in parts:
            raise UserError(f"no row of {file} says train in the column {self.split_column!r}")
        return DataSplits(
            place=str(file),
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
        raise UserError(f"there is no CSV at {file}; give data.csv, a path below data.root or one of its own")
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            head = stream.readline()
            stream.seek(0)
            delimiter = max(",;\t", key=head.count)
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
    place = {name: label for label, name in enumerate(names)}
    return tuple(names), torch.tensor([place[value] for value in values])


def _parts(values: list[str], file: Path, whole: Files) -> dict[str, Files]:
    known = {name: split for split, names in SPLITS.items() for name in names}
    rows: dict[str, list[int]] = {}
    for number, value in enumerate(values):
        if value.strip().lower() not in known:
            raise UserError(
                f"row {number + 1} of {file} says {value!r} for its split; possible are {', '.join(SPLITS)}"
            )
        rows.setdefault(known[value.strip().lower()], []).append(number)
    return {split: whole.select(torch.tensor(part), whole.labels[part]) for split, part in rows.items()}
