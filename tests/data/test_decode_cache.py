"""The decode cache returns the pixels of the files, also after a file has changed or a build was killed."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from filterscope.data.folder import FolderDataModule
from filterscope.data.preprocessing import Augmentation
from filterscope.errors import UserError
from filterscope.storage.disk_cache import build_once


@pytest.fixture
def flowers(tmp_path):
    """Two classes of eight images each of another size, none smaller than 24 pixels."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(("daisy", "rose")):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(8):
            shape = (24 + number, 40 - 3 * number + label, 3) if number % 2 else (24, 24, 3)
            pixels = rng.integers(0, 256, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / name / f"{number}.png")
    return tmp_path / "set"


def module(root, cache=None, **options):
    options = {"image_size": 20, "resize_ratio": 1.2, "batch_size": 4, "num_workers": 0} | options
    return FolderDataModule(root=str(root), cache=str(cache) if cache else None, **options)


def images_of(loader):
    return torch.cat([images for images, _ in loader])


def caches(folder):
    return sorted(path.name for path in (folder / "images").iterdir() if not path.name.startswith("."))


def test_validation_sees_the_same_bits_with_and_without_a_cache(flowers, tmp_path):
    with_cache, without = module(flowers, tmp_path / "cache"), module(flowers)
    assert torch.equal(images_of(with_cache.val_dataloader()), images_of(without.val_dataloader()))
    for one, other in zip(with_cache.examples(3), without.examples(3), strict=True):
        assert one == other if isinstance(one, tuple) else torch.equal(one, other)


@pytest.mark.parametrize("augment", [Augmentation(color=0.2), Augmentation(crop_area=None)])
def test_augmentation_of_images_of_the_cached_size_gives_the_same_bits(flowers, tmp_path, augment):
    for file in flowers.rglob("*.png"):
        pixels = np.random.default_rng(1).integers(0, 256, (30, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file)
    with_cache, without = module(flowers, tmp_path / "cache", augment=augment), module(flowers, augment=augment)
    assert torch.equal(images_of(with_cache.train_dataloader()), images_of(without.train_dataloader()))


def test_a_second_run_reads_the_cache_of_the_first(flowers, tmp_path):
    module(flowers, tmp_path / "cache").setup()
    (folder,) = (tmp_path / "cache" / "images" / name for name in caches(tmp_path / "cache"))
    built = (folder / "pixels.bin").stat().st_mtime_ns
    images_of(module(flowers, tmp_path / "cache").train_dataloader())
    assert (folder / "pixels.bin").stat().st_mtime_ns == built


def test_a_changed_file_is_never_read_from_the_old_cache(flowers, tmp_path):
    module(flowers, tmp_path / "cache").setup()
    for file in flowers.rglob("*.png"):
        Image.new("RGB", (24, 30), "red").save(file)
        os.utime(file, ns=(0, 12345))
    images = images_of(module(flowers, tmp_path / "cache").val_dataloader())
    assert (images[:, 0] == 1).all()
    assert (images[:, 1:] == 0).all()
    assert len(caches(tmp_path / "cache")) == 2


def test_another_size_is_another_cache(flowers, tmp_path):
    for size in (20, 16):
        module(flowers, tmp_path / "cache", image_size=size).setup()
    assert len(caches(tmp_path / "cache")) == 2


def test_a_truncated_cache_is_rebuilt(flowers, tmp_path):
    before = images_of(module(flowers, tmp_path / "cache").val_dataloader())
    (folder,) = (tmp_path / "cache" / "images" / name for name in caches(tmp_path / "cache"))
    os.truncate(folder / "pixels.bin", 100)
    assert torch.equal(images_of(module(flowers, tmp_path / "cache").val_dataloader()), before)


def test_two_loader_processes_read_the_same_bits_as_none(flowers, tmp_path):
    options = {"augment": Augmentation()}
    alone = images_of(module(flowers, tmp_path / "cache", **options).train_dataloader())
    together = images_of(module(flowers, tmp_path / "cache", num_workers=2, **options).train_dataloader())
    assert torch.equal(alone, together)


BUILD = """
import sys, time
from pathlib import Path
from filterscope.storage.disk_cache import build_once

def build(folder):
    with Path(sys.argv[1], "builds.txt").open("a") as file:
        file.write("built ")
    (folder / "half.bin").write_bytes(b"half")
    time.sleep(float(sys.argv[2]))
    (folder / "whole.bin").write_bytes(b"whole")
    return {}

print(build_once(Path(sys.argv[1]), key="some", num_bytes=1, option="data.cache", build=build))
"""


def builder(folder, seconds):
    return subprocess.Popen([sys.executable, "-c", BUILD, str(folder), str(seconds)], stdout=subprocess.PIPE, text=True)


def test_two_processes_build_an_entry_once(tmp_path):
    both = [builder(tmp_path, 0.5) for _ in range(2)]
    assert [process.communicate(timeout=60)[0].strip() for process in both] == [str(tmp_path / "some")] * 2
    assert (tmp_path / "builds.txt").read_text().split() == ["built"]


def test_a_killed_build_leaves_no_entry_and_the_next_one_completes(tmp_path):
    first = builder(tmp_path, 60)
    while not list(tmp_path.glob(".some.partial/half.bin")):
        time.sleep(0.05)
        assert first.poll() is None
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert not (tmp_path / "some").exists()
    builder(tmp_path, 0).communicate(timeout=60)
    assert sorted(path.name for path in (tmp_path / "some").iterdir()) == ["about.json", "half.bin", "whole.bin"]
    assert not list(tmp_path.glob(".some.partial"))


def test_a_damaged_file_is_named_in_one_line_and_leaves_no_cache(flowers, tmp_path):
    file = flowers / "rose" / "3.png"
    file.write_bytes(file.read_bytes()[:1500])
    with pytest.raises(UserError, match="cannot be read as an image"):
        module(flowers, tmp_path / "cache").setup()
    assert caches(tmp_path / "cache") == []


def test_a_folder_that_cannot_be_written_is_named_in_one_line(flowers, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match=r"data\.cache=.*file/cache.* cannot be written"):
        module(flowers, tmp_path / "file" / "cache").setup()


def test_too_little_disk_space_is_reported_before_anything_is_built(tmp_path):
    with pytest.raises(UserError, match=r"data\.cache=.*: 1000000000\.0 GB are needed, [\d.]+ GB are free"):
        build_once(tmp_path, key="some", num_bytes=10**18, option="data.cache", build=lambda _: {})
