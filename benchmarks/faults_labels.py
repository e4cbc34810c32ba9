"""Lay out images as people do and in ambiguous ways: no image may get a wrong label or split without a word."""

import csv
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from report import Report

from filterscope.data.csv import CSVDataModule
from filterscope.data.datamodule import ImageDataModule
from filterscope.data.folder import FolderDataModule
from filterscope.errors import UserError

Truth = dict[str, tuple[str, str | None]]
"""The class and the split of each file, by its real path; a split of None is cut off."""

CLASSES = ["rose", "tulip", "Löwenzahn", "向日葵", "a b", "bus", "train", "10", "9", "x" * 80, "-", "null", "it's"]
SPLITS = {
    "train": ["train", "Training", "TRAIN", "train_set", "trainset", "images_train", "train2017", "Train-Data"],
    "val": ["val", "valid", "Validation", "VAL", "val_set", "dev", "valid2017", "Valid-Images"],
    "test": ["test", "Testing", "TEST", "test_set", "testdata", "test2017"],
}
BESIDE = ["notes.txt", "1.xml", "_annotations.json", "clip.mp4", ".DS_Store", "Thumbs.db", "Picasa.ini", "README"]
FORMS = ["plain", "blanks", "windows", "utf-16", "semicolons", "no extension", "no folder", "class columns", "is_test"]
REFUSED = [
    "parts",
    "splits inside",
    "class or split",
    "two folders of a split",
    "two labels",
    "class unknown",
    "row twice",
]


@dataclass
class Situation:
    """A folder of images in the way of one person."""

    root: Path
    rng: random.Random
    truth: Truth = field(default_factory=dict)

    def image(self, path: str, label: str, split: str | None) -> Path:
        """Write an image that belongs to a class and a split."""
        file = self.root / path
        assert file.is_relative_to(self.root), path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), self.rng.randrange(256)).save(file)
        self.truth[os.path.realpath(file)] = (label, split)
        return file

    def classes(self, below: str, names: list[str], split: str | None, count: int = 4) -> None:
        """Write class folders."""
        for name in names:
            for number in range(count):
                self.image(f"{below}/{name}/{self.rng.randrange(10**9)}_{number}.png", name, split)


def labels(report: Report, place: Path, *, seed: int, count: int) -> None:
    """Read `count` random situations, a third of them ambiguous, and as many sets that grow."""
    rng = random.Random(seed)
    images = wrong = refused = accepted = faults = 0
    for number in range(count):
        situation = Situation(root=place / f"labels{number}", rng=rng)
        ambiguous = number % 3 == 2
        kind = REFUSED[number // 3 % len(REFUSED)] if ambiguous else ["folder", "csv"][number % 3]
        try:
            data = (_ambiguous if ambiguous else _clear)(situation, kind)
            data.setup()
            accepted += ambiguous
            seen = dict(_seen(data))
            expected = situation.truth
            images += len(expected)
            wrong += 0 if ambiguous else sum(not _agrees(seen.get(path), truth) for path, truth in expected.items())
            wrong += 0 if ambiguous else len(seen.keys() - expected.keys())
        except UserError as error:
            refused += not ambiguous
            faults += "\n" in str(error)
            if not ambiguous:
                print(f"refused: {error}")
        except Exception as error:
            faults += 1
            print(f"{kind}: {type(error).__name__}: {error}")
        shutil.rmtree(situation.root)
    report.add("labels: images in folders and tables as people have them", images, at_least=count, seed=seed)
    report.add("labels: images with a wrong class or split", wrong, at_most=0)
    report.add("labels: clear situations that were refused", refused, at_most=0)
    report.add("labels: ambiguous situations that were accepted", accepted, at_most=0)
    report.add("labels: tracebacks, or messages of several lines", faults, at_most=0)
    moved = sum(_moved(place / f"growing{number}", rng) for number in range(count // 4))
    report.add("labels: trained images that moved to val or test when the set grew", moved, at_most=0, sets=count // 4)


def _agrees(seen: tuple[str, str] | None, truth: tuple[str, str | None]) -> bool:
    return seen is not None and seen[0] == truth[0] and truth[1] in (None, seen[1])


def _seen(data: ImageDataModule) -> Iterator[tuple[str, tuple[str, str]]]:
    for split, images in data._splits.items():
        for path, label in zip(images.paths, images.labels.tolist(), strict=True):
            yield os.path.realpath(path), (data.class_names[label], split)


def _module(kind: type[ImageDataModule], root: Path, **options: object) -> ImageDataModule:
    return kind(root=str(root), image_size=4, num_channels=1, num_workers=0, **options)


def _clear(situation: Situation, kind: str) -> ImageDataModule:
    rng, root = situation.rng, situation.root
    names = rng.sample(CLASSES, rng.randrange(2, 5))
    if kind == "csv":
        return _table(situation, names, rng.choice(FORMS))
    wrapper = "/".join(
        [".", *(rng.choice(["data", "images", "flower_data", "my set"]) for _ in range(rng.randrange(3)))]
    )
    splits = rng.choice([[], ["train"], ["train", "val"], ["train", "test"], ["train", "val", "test"]])
    for split in splits:
        cut = split == "train" and "val" not in splits  # validation images are cut from these
        situation.classes(f"{wrapper}/{rng.choice(SPLITS[split])}", names, None if cut else split)
    if not splits:
        situation.classes(wrapper, names, None)
    folders = sorted({Path(path).parent for path in situation.truth})
    for name in rng.sample(BESIDE, 3):
        (rng.choice(folders) / name).write_text("no image")
    if rng.random() < 0.3:
        (root / wrapper / "__MACOSX").mkdir()
        (root / wrapper / ".ipynb_checkpoints").mkdir()
    if rng.random() < 0.3:  # everything is a link to somewhere else
        store = root.with_name(f"{root.name}_store")
        shutil.rmtree(store, ignore_errors=True)
        store.mkdir()
        for number, path in enumerate(list(situation.truth)):
            target = store / f"{number}.png"
            shutil.move(path, target)
            Path(path).symlink_to(target)
            situation.truth[os.path.realpath(target)] = situation.truth.pop(path)
    return _module(FolderDataModule, root)


def _table(situation: Situation, names: list[str], form: str) -> ImageDataModule:
    files = [
        (situation.image(f"pictures/{i % 2}/{name[:9]}{i}.png", name, None), name) for name in names for i in range(6)
    ]
    held_out = {str(file): situation.rng.random() < 0.3 and i % 6 > 1 for i, (file, _) in enumerate(files)}
    head, rows = ["filename", "label"], []
    for file, name in files:
        path = str(file.relative_to(situation.root))
        path = path.replace("/", "\\") if form == "windows" else path
        path = path.removesuffix(".png") if form == "no extension" else file.name if form == "no folder" else path
        rows.append([path, name])
        if form == "class columns":
            rows[-1:] = [[path, *(str(int(name == each)) for each in names)]]
        if form == "is_test":
            rows[-1].append(str(int(held_out[str(file)])))
            situation.truth[os.path.realpath(file)] = (name, "test" if held_out[str(file)] else None)
    head = ["filename", *names] if form == "class columns" else [*head, "is_test"] if form == "is_test" else head
    encoding = "utf-16" if form == "utf-16" else "utf-8-sig"
    with (situation.root / "labels.csv").open("w", encoding=encoding, newline="") as file:
        writer = csv.writer(file, delimiter=";" if form == "semicolons" else ",")
        writer.writerows([head, *rows])
    if form == "blanks":
        text = (situation.root / "labels.csv").read_text(encoding=encoding)
        (situation.root / "labels.csv").write_text(text.replace(",", " , ") + "\n\n ,\n", encoding="utf-8")
    return _module(CSVDataModule, situation.root, split_column="is_test" if form == "is_test" else None)


def _ambiguous(situation: Situation, kind: str) -> ImageDataModule:
    names = situation.rng.sample([name for name in CLASSES if name != "train"], 3)
    layouts: dict[str, Callable[[], object]] = {
        "parts": lambda: [situation.classes(part, names, None) for part in ("part1", "part2")],
        "splits inside": lambda: [situation.classes(name, ["train", "test"], None) for name in names],
        "class or split": lambda: situation.classes(".", [*names, situation.rng.choice(["test", "Validation"])], None),
        "two folders of a split": lambda: [situation.classes(part, names, None) for part in ("train", "Training")],
        "two labels": lambda: [
            situation.classes(".", names, None),
            os.link(next(iter(situation.truth)), situation.root / names[1] / "same.png"),
        ],
        "class unknown": lambda: [
            situation.classes("train", names, None),
            situation.classes("val", [*names, "another"], None),
        ],
        "row twice": lambda: _conflict(situation, names),
    }
    layouts[kind]()
    return _module(CSVDataModule if kind == "row twice" else FolderDataModule, situation.root)


def _conflict(situation: Situation, names: list[str]) -> None:
    situation.classes(".", names, None)
    with (situation.root / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "label"])
        for path, (name, _) in situation.truth.items():
            writer.writerow([os.path.relpath(path, situation.root), name])
        writer.writerow([os.path.relpath(path, situation.root), names[0]])


def _moved(root: Path, rng: random.Random) -> int:
    """Return how many training images are in another split after the set has grown by up to a half."""
    situation = Situation(root=root, rng=rng)
    names = rng.sample(CLASSES, 3)
    situation.classes(".", names, None, count=rng.randrange(12, 40))
    before = dict(_seen(_set_up(root)))
    situation.classes(".", [name for name in names if rng.random() < 0.7], None, count=rng.randrange(1, 20))
    after = dict(_seen(_set_up(root)))
    shutil.rmtree(root)
    return sum(split == "train" and after[path][1] != "train" for path, (_, split) in before.items())


def _set_up(root: Path) -> ImageDataModule:
    data = _module(FolderDataModule, root)
    data.setup()
    return data
