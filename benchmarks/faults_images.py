"""Real photographs, some of them damaged in ten ways: left out and counted, or the first one named."""

import io
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

from faults_runs import config, start
from PIL import Image
from report import Report

from filterscope.config.factory import build_data
from filterscope.data.flowers import FlowersDataModule
from filterscope.errors import UserError

Damage = Callable[[bytes], bytes]


def damages() -> dict[str, Damage]:
    """Return ten ways in which an image file can be none any more."""
    return {
        "empty": lambda _: b"",
        "half of it": lambda data: data[: len(data) // 2],
        "its header only": lambda data: data[:20],
        "zeros": lambda data: bytes(len(data)),
        "a page that says it is not there": lambda _: b"<!DOCTYPE html><html><body>404</body></html>",
        "an archive": _archive,
        "half a PNG": _half_png,
        "a GIF without pixels": lambda _: b"GIF89a" + bytes(30),
        "a PNG as large as a bomb": _bomb,
        "its beginning lost": lambda data: data[64:],
    }


def damaged(report: Report, place: Path, real: Path, *, count: int, bad: int, seed: int) -> None:
    """Damage some of many photographs and train on the others."""
    folder, labels = _photographs(place, real, count)
    chance = random.Random(seed)
    sound = dict(labels)
    ways = list(damages().values())
    victims = chance.sample(sorted(sound), bad)
    for number, path in enumerate(victims):
        (folder / path).write_bytes(ways[number % len(ways)]((folder / path).read_bytes()))
        del sound[path]
    knobs = (
        "data=folder", f"data.root={folder}", "data.num_workers=2", "data.image_size=32", "data.batch_size=64",
        "model=small_cnn", "model.in_channels=3", "visuals=[filters,predictions]", "trainer.max_epochs=1",
    )  # fmt: skip
    cfg = config(*knobs, "data.on_corrupt=skip")
    cfg["data"]["root"] = str(folder)
    data = build_data(cfg)
    left_out = {str(Path(path).relative_to(folder)) for path in data.skipped}
    report.add("images: left out by on_corrupt=skip", len(left_out), at_least=bad, images=count, ways=len(ways))
    report.add("images: left out that were sound, or kept that were not", len(left_out ^ set(victims)), at_most=0)
    wrong = total = 0
    for images in data._splits.values():
        for path, label in zip(images.paths, images.labels.tolist(), strict=True):
            total += 1
            wrong += sound[str(Path(path).relative_to(folder))] != data.class_names[label]
    report.add("images: kept, with their labels looked at", total, at_least=count - bad)
    report.add("images: labels that changed", wrong, at_most=0)
    run = start(cfg, place / "images_run")
    codes = run.wait(600)
    report.add("images: exit code of training with skip", codes[0], at_most=0, said=run.said)
    cfg["data"]["on_corrupt"] = "error"
    try:
        build_data(cfg)
        named = False
    except UserError as error:
        named = any(victim in str(error) for victim in victims)
    report.add("images: on_corrupt=error names a damaged one before training", float(named), at_least=1)


def _photographs(place: Path, real: Path, count: int) -> tuple[Path, dict[str, str]]:
    """Lay the flowers out in class folders; return where, and the class of each file."""
    source = FlowersDataModule(root=str(real), download=False).find()
    folder = place / "photographs"
    labels = {}
    for images in (source.train, source.val):
        for path, label in zip(images.paths, images.labels.tolist(), strict=True):
            if len(labels) == count:
                break
            name = f"{label:03d}"
            (folder / name).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / name / Path(path).name)
            labels[f"{name}/{Path(path).name}"] = name
    return folder, labels


def _half_png(data: bytes) -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(data)).save(file, "PNG")
    return file.getvalue()[: len(file.getvalue()) // 2]


def _bomb(data: bytes) -> bytes:
    del data
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "PNG")
    return file.getvalue()


def _archive(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("image.jpg", data)
    return file.getvalue()
