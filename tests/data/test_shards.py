import hashlib
import itertools
import json
import os
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from train import train

from filterscope.data.folder import FolderDataModule
from filterscope.data.sampler import EpochSampler
from filterscope.data.shards import ShardsDataModule, pack
from filterscope.errors import UserError
from tiny import TINY


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Four classes of images of distinct brightness; the file names follow from the brightness."""
    root = tmp_path_factory.mktemp("images")
    for number in range(96):
        path = root / ("train" if number < 72 else "val") / f"class {number % 4}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (30, 20), 2 * number).save(path)
    return root


def packed(images: Path, folder: Path) -> Path:
    data = FolderDataModule(root=str(images), image_size=16, num_channels=1, num_workers=0)
    data.setup()
    count = pack(data.splits, data.class_names, folder, shard_bytes=20_000, bit_depth=None)
    assert count == len(list(folder.glob("*.tar"))) > 4
    return folder


@pytest.fixture(scope="module")
def shards(images, tmp_path_factory):
    return packed(images, tmp_path_factory.mktemp("shards"))


def module(root: Path | str, **options: Any) -> ShardsDataModule:
    options = {"image_size": 16, "num_channels": 1, "num_workers": 0, "batch_size": 8} | options
    return ShardsDataModule(root=str(root), **options)


def pairs(loader) -> Counter:
    """How often each brightness comes with each label."""
    return Counter(
        (round(float(image.max() * 127.5)), int(label)) for x, y in loader for image, label in zip(x, y, strict=True)
    )


WHOLE = Counter({(number, number % 4): 1 for number in range(72)})


def refused(data: ShardsDataModule, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        pairs(data.train_dataloader())
    assert str(caught.value).isprintable()


def test_shards_hold_every_image_with_its_label(shards):
    data = module(shards)
    data.setup()
    assert data.class_names == tuple(f"class {number}" for number in range(4))
    assert pairs(data.train_dataloader()) == WHOLE
    assert pairs(data.val_dataloader()) == Counter({(number, number % 4): 1 for number in range(72, 96)})
    assert data.describe() == "train 72, val 24 images in 4 classes; smallest class 'class 0': 18"


def test_shards_are_webdatasets_of_unchanged_files(images, shards):
    with tarfile.open(shards / "val-00000.tar") as tar:
        names = tar.getnames()
        assert [Path(name).suffix for name in names[:4]] == [".png", ".cls", ".png", ".cls"]
        assert [Path(name).stem for name in names[::2]] == [Path(name).stem for name in names[1::2]]
        content = {
            tar.extractfile(name).read(): int(tar.extractfile(f"{Path(name).stem}.cls").read()) for name in names[::2]
        }
    files = {path.read_bytes(): int(path.parent.name[-1]) for path in (images / "val").rglob("*.png")}
    assert content.items() <= files.items()


def test_excluded_classes_and_joined_splits_keep_their_labels(shards):
    data = module(shards, exclude=["class 1"])
    data.setup()
    assert {label for _, label in pairs(data.train_dataloader())} == {0, 1, 2}
    assert pairs(data.train_dataloader())[(6, 1)] == 1  # class 2
    both = module(shards, train_splits=["train", "val"])
    both.setup()
    assert pairs(both.train_dataloader()) == Counter({(number, number % 4): 1 for number in range(96)})


@pytest.mark.parametrize("max_cache_gb", [100.0, 80e-6])
def test_shards_are_downloaded_when_needed_and_kept_within_the_limit(images, served, tmp_path, max_cache_gb):
    folder, address = served
    packed(images, folder)
    data = module(address, cache=str(tmp_path / "cache"), max_cache_gb=max_cache_gb)
    data.setup()
    assert not (tmp_path / "cache").exists()
    (tmp_path / "cache" / "shards").mkdir(parents=True)
    (tmp_path / "cache" / "shards" / "mine.tar").write_bytes(b"")
    for _ in range(2):
        assert pairs(data.train_dataloader()) == WHOLE
    assert (tmp_path / "cache" / "shards" / "mine.tar").exists()
    kept = sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*.tar"))
    assert kept <= max_cache_gb * 1e9
    for file in folder.glob("*.tar"):
        file.unlink()
    if max_cache_gb == 100:
        again = module(address, cache=str(tmp_path / "cache"))
        assert pairs(again.ordered("train", augmentation_epoch=None)) == WHOLE
    else:
        refused(data, "could not download .*File not found")


READ = """
import sys
from filterscope.data.shards import ShardsDataModule
data = ShardsDataModule(root=sys.argv[1], cache=sys.argv[2], image_size=16, num_channels=1, num_workers=2, batch_size=6)
data.setup()
loader = data.train_dataloader()
for data.epoch in (0, 1):
    for images, labels in loader:
        for image, label in zip(images, labels):
            print(data.epoch, round(float(image.max() * 127.5)), int(label))
"""


def test_two_processes_with_two_loaders_each_see_every_image_once_an_epoch(images, served, tmp_path):
    folder, address = served
    packed(images, folder)
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", READ, address, str(tmp_path / "cache")],
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=500)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0]
    seen = Counter(tuple(map(int, line.split())) for text in said for line in text.splitlines())
    assert seen == Counter({(epoch, *pair): 1 for epoch in range(2) for pair in WHOLE})
    orders = [[line[2:] for line in said[0].splitlines() if line.startswith(epoch)] for epoch in "01"]
    assert orders[0] != orders[1]


def test_three_ranks_share_the_images_of_a_folder(shards, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    seen: Counter[tuple[int, int]] = Counter()
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        seen += pairs(module(shards).train_dataloader())
    assert seen == WHOLE


def test_parts_come_one_after_the_other_and_an_interrupted_epoch_goes_on():
    blocks = torch.arange(4000) // 20  # 200 parts

    def order(rank: int = 0, world_size: int = 1, seen: int = 0, epoch: int = 3) -> list[int]:
        sampler = EpochSampler(
            4000,
            epoch=lambda: epoch,
            seed=1,
            shuffle=True,
            rank=rank,
            world_size=world_size,
            num_seen=lambda: seen,
            blocks=blocks,
        )
        return [index for _, index in sampler]

    whole = order()
    assert sorted(whole) == list(range(4000))
    for start in range(0, 4000, 320):  # 16 parts of 20 images
        assert len(set(blocks[whole[start : start + 320]].tolist())) <= 16
    assert whole != order(epoch=4)
    assert order(seen=1234) == whole[1234:]
    shares = [order(rank, 4) for rank in range(4)]
    assert sorted(itertools.chain(*shares)) == list(range(4000))
    assert order(2, 4, seen=100) == shares[2][100:]
    used = [set(blocks[share].tolist()) for share in shares]
    assert sum(map(len, used)) < 270  # of 200 parts each is read by one rank, except at the borders of the shares


def test_a_run_on_shards_resumes_to_the_same_bits(shards, composed: Callable[..., dict[str, Any]], tmp_path):
    tiny = [option for option in TINY if "num_" not in option and "in_channels" not in option]
    options = [*tiny, "model.in_channels=1", "data=shards", f"data.root={shards}", "data.num_workers=0"]
    options += ["visuals=none", "schedule=constant"]
    train(composed(*options, "trainer.max_epochs=2"), tmp_path / "whole")
    train(composed(*options, "trainer.max_epochs=1"), tmp_path / "part")
    train(composed(*options, "trainer.max_epochs=2", f"resume={tmp_path / 'part'}"), tmp_path / "part")
    files = [tmp_path / run / "checkpoints" / "last.ckpt" for run in ("whole", "part")]
    first, second = (torch.load(file, weights_only=True)["state_dict"] for file in files)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_folder_of_shards_is_not_overwritten(images, shards):
    with pytest.raises(UserError, match="holds shards already"):
        packed(images, shards)


def test_a_url_needs_a_folder_for_downloads():
    refused(module("https://example.org/shards"), match=r"is a URL: give data\.cache")


def change_contents(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    contents = json.loads((folder / "contents.json").read_text())
    change(contents)
    (folder / "contents.json").write_text(json.dumps(contents))


def cut_index(folder: Path) -> None:
    """Cut the index, and write its new hash beside it."""
    content = (folder / "index.npz").read_bytes()[:-200]
    (folder / "index.npz").write_bytes(content)
    change_contents(folder, lambda c: c.update(index=f"sha256:{hashlib.sha256(content).hexdigest()}"))


def blown_up_index(folder: Path) -> None:
    """Replace the index by one of zeros, which takes a thousand times its size in memory."""
    np.savez_compressed(folder / "index.npz", train=np.zeros((100_000, 4), dtype=np.int64))
    change_contents(
        folder, lambda c: c.update(index=f"sha256:{hashlib.sha256((folder / 'index.npz').read_bytes()).hexdigest()}")
    )


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no contents": (lambda f: (f / "contents.json").unlink(), "holds no shards that can be read: .*No such file"),
    "no JSON": (lambda f: (f / "contents.json").write_text("["), "holds no shards that can be read"),
    "a list": (lambda f: (f / "contents.json").write_text("[]"), "holds no shards that can be read"),
    "another index": (lambda f: (f / "index.npz").write_bytes(b"x"), "index.npz is not the one"),
    "an index that unpacks to far more": (blown_up_index, "index.npz would unpack to 3,200,128 bytes"),
    "a cut index": (cut_index, "holds no shards that can be read"),
    "no split": (lambda f: change_contents(f, lambda c: c["splits"].clear()), "holds no shards that can be read"),
    "a path": (lambda f: change_contents(f, lambda c: c["splits"]["train"].update({"../x": "sha256:"})), "no shard"),
    "a class less": (lambda f: change_contents(f, lambda c: c["class_names"].pop()), "a class or a shard that is not"),
    "a shard less": (lambda f: (f / "train-00000.tar").unlink(), "train-00000.tar is missing"),
    "a cut shard": (lambda f: os.truncate(f / "train-00000.tar", 700), "the shard is not complete|cannot be read"),
    "an image of zeros": (lambda f: (f / "train-00000.tar").write_bytes(bytes(30_000)), "cannot be read as an image"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_shards_end_in_one_line(images, tmp_path, damage):
    packed(images, tmp_path)
    damaging, message = DAMAGES[damage]
    damaging(tmp_path)
    refused(module(tmp_path), match=message)


def test_a_download_that_is_not_the_shard_is_refused(images, served, tmp_path):
    folder, address = served
    packed(images, folder)
    for file in folder.glob("train*.tar"):
        file.write_bytes(bytes(np.frombuffer(file.read_bytes(), dtype=np.uint8)[::-1]))
    refused(module(address, cache=str(tmp_path / "cache")), match="could not download .*hash")


def test_sixteen_bit_images_are_packed_with_their_bit_depth(tmp_path):
    for name, value in (("a", 900), ("b", 4095)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(4):
            Image.fromarray(np.full((8, 8), value, dtype=np.uint16)).save(tmp_path / "images" / name / f"{number}.png")
    data = FolderDataModule(root=str(tmp_path / "images"), image_size=8, num_channels=1, num_workers=0)
    data.setup()
    pack(data.splits, data.class_names, tmp_path / "shards", shard_bytes=1000, bit_depth=data.bit_depth)
    shards = module(tmp_path / "shards", image_size=8)
    shards.setup()
    assert set(pairs(shards.train_dataloader())) == {(round(56 / 2), 0), (round(255 / 2), 1)}
