"""Damage some of many real photographs: `skip` must leave out exactly these, `error` must name one."""

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
    """Return ten ways to damage an image file."""
    return {
        "empty": lambda _: b"",
        "the first half only": lambda data: data[: len(data) // 2],
        "its header only": lambda data: data[:20],
        "zeros": lambda data: bytes(len(data)),
        "a 404 page": lambda _: b"<!DOCTYPE html><html><body>404</body></html>",
        "an archive": _archive,
        "half a PNG": _half_png,
        "a GIF without pixels": lambda _: b"GIF89a" + bytes(30),
        "a decompression bomb": _bomb,
        "its beginning missing": lambda data: data[64:],
    }


def damaged(report: Report, place: Path, real: Path, *, count: int, bad: int, seed: int) -> None:
    """Damage `bad` of `count` photographs and train on the others."""
    folder, labels = _photographs(place, real, count)
    rng = random.Random(seed)
    intact = dict(labels)
    ways = list(damages().values())
    victims = rng.sample(sorted(intact), bad)
    for number, path in enumerate(victims):
        (folder / path).write_bytes(ways[number % len(ways)]((folder / path).read_bytes()))
        del intact[path]
    overrides = (
        "data=folder", f"data.root={folder}", "data.num_workers=2", "data.image_size=32", "data.batch_size=64",
        "model=small_cnn", "model.in_channels=3", "visuals=[filters,predictions]", "trainer.max_epochs=1",
    )  # fmt: skip
    cfg = config(*overrides, "data.on_corrupt=skip")
    cfg["data"]["root"] = str(folder)
    data = build_data(cfg)
    left_out = {str(Path(path).relative_to(folder)) for path in data.skipped}
    report.add("images: left out by on_corrupt=skip", len(left_out), at_least=bad, images=count, ways=len(ways))
    report.add("images: intact ones left out or damaged ones kept", len(left_out ^ set(victims)), at_most=0)
    wrong = total = 0
    for images in data._splits.values():
        for path, label in zip(images.paths, images.labels.tolist(), strict=True):
            total += 1
            wrong += intact[str(Path(path).relative_to(folder))] != data.class_names[label]
    report.add("images: kept, with their labels checked", total, at_least=count - bad)
    report.add("images: changed labels", wrong, at_most=0)
    run = start(cfg, place / "images_run")
    codes = run.wait(600)
    report.add("images: exit code of training with skip", codes[0], at_most=0, message=run.message)
    cfg["data"]["on_corrupt"] = "error"
    try:
        build_data(cfg)
        named = False
    except UserError as error:
        named = any(victim in str(error) for victim in victims)
    report.add("images: on_corrupt=error names a damaged one before training", float(named), at_least=1)


def _photographs(place: Path, real: Path, count: int) -> tuple[Path, dict[str, str]]:
    """Copy the flowers into class folders; return the folder, and the class of each file."""
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
