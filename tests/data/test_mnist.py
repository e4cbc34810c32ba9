import gzip
import hashlib
import shutil
import struct

import numpy as np
import pytest
import torch
from torchvision.datasets import MNIST, FashionMNIST

from filterscope.data.mnist import FashionMNISTDataModule, MNISTDataModule
from filterscope.errors import UserError

SETS = [(MNISTDataModule, MNIST), (FashionMNISTDataModule, FashionMNIST)]


def write(root, dataset, splits=("train", "t10k"), count=40):
    folder = root / dataset.__name__ / "raw"
    folder.mkdir(parents=True)
    for split in splits:
        labels = np.arange(count, dtype=np.uint8) % 10
        images = np.broadcast_to(labels[:, None, None] * 20, (count, 28, 28)).astype(np.uint8)
        (folder / f"{split}-images-idx3-ubyte").write_bytes(
            struct.pack(">iiii", 2051, count, 28, 28) + images.tobytes()
        )
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 2049, count) + labels.tobytes())
    return folder


def refused(data, match):
    with pytest.raises(UserError, match=match) as caught:
        data.setup()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("module", "dataset"), SETS)
@pytest.mark.parametrize("num_channels", [1, 3])
def test_images_keep_their_labels_through_the_split(tmp_path, module, dataset, num_channels):
    write(tmp_path, dataset)
    data = module(root=str(tmp_path), download=False, num_channels=num_channels)
    data.setup()
    assert data.num_classes == 10
    assert len(data.labels("train")) + len(data.labels("val")) == len(data.labels("test")) == 40
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        images, labels = next(iter(loader))
        assert images.shape[1:] == (num_channels, 28, 28)
        assert torch.equal((images.amax((1, 2, 3)) * 255 / 20).round().long(), labels)


def test_fashion_mnist_has_names_of_clothes(tmp_path):
    write(tmp_path, FashionMNIST)
    data = FashionMNISTDataModule(root=str(tmp_path), download=False)
    data.setup()
    assert data.class_names == tuple(FashionMNIST.classes)


def test_images_can_be_enlarged_for_a_large_network(tmp_path):
    write(tmp_path, MNIST)
    data = MNISTDataModule(root=str(tmp_path), download=False, image_size=64, num_channels=3)
    assert data.examples(2)[0].shape == (2, 3, 64, 64)


@pytest.mark.parametrize(("module", "dataset"), SETS)
def test_without_test_files_there_is_no_test_split(tmp_path, module, dataset):
    write(tmp_path, dataset, splits=("train",))
    data = module(root=str(tmp_path), download=False)
    data.setup()
    assert not data.has_test


@pytest.mark.parametrize(("module", "dataset"), SETS)
def test_an_empty_root_says_what_is_missing(tmp_path, module, dataset):
    refused(module(root=str(tmp_path), download=False), match=f"{dataset.__name__}/raw/train-images-idx3-ubyte")


@pytest.mark.parametrize(("module", "dataset"), SETS)
def test_without_a_network_the_host_the_files_and_the_folder_are_named(tmp_path, module, dataset, monkeypatch):
    monkeypatch.setattr(dataset, "mirrors", ["http://127.0.0.1:9/"])
    refused(
        module(root=str(tmp_path)),
        match=rf"{dataset.__name__} from 127\.0\.0\.1:9 .*train-images-idx3-ubyte\.gz.*{dataset.__name__}/raw by hand",
    )


def publish(served, dataset, monkeypatch):
    """Serve a data set of 40 images as `dataset`'s mirror does, with its hashes."""
    folder, address = served
    files = {file.name: gzip.compress(file.read_bytes()) for file in sorted(write(folder, dataset).iterdir())}
    for name, content in files.items():
        (folder / f"{name}.gz").write_bytes(content)
    resources = [(f"{name}.gz", hashlib.md5(content).hexdigest()) for name, content in files.items()]
    monkeypatch.setattr(dataset, "mirrors", [address])
    monkeypatch.setattr(dataset, "resources", resources)
    return folder


@pytest.mark.parametrize(("module", "dataset"), SETS)
def test_a_download_is_the_whole_data_set_and_is_not_repeated(tmp_path, served, module, dataset, monkeypatch):
    folder = publish(served, dataset, monkeypatch)
    data = module(root=str(tmp_path / "data"))
    data.setup()
    assert (len(data.labels("train")) + len(data.labels("val")), len(data.labels("test"))) == (40, 40)
    raw = tmp_path / "data" / dataset.__name__ / "raw"
    assert sorted(file.name for file in raw.iterdir() if file.name != ".lock") == sorted(
        f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
    )
    for file in folder.glob("*.gz"):
        file.unlink()
    module(root=str(tmp_path / "data")).setup()


def test_a_download_with_another_hash_leaves_no_data_set(tmp_path, served, monkeypatch):
    folder = publish(served, MNIST, monkeypatch)
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"something else"))
    refused(MNISTDataModule(root=str(tmp_path / "data")), match=r"could not download MNIST .*hash is not the published")
    refused(MNISTDataModule(root=str(tmp_path / "data"), download=False), match="holds no MNIST")


def test_files_placed_by_hand_need_no_network(tmp_path, served, monkeypatch):
    folder = publish(served, MNIST, monkeypatch)
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in folder.glob("*.gz"):
        shutil.copy(file, raw)
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])
    MNISTDataModule(root=str(tmp_path / "data")).setup()


@pytest.mark.parametrize("damage", ["truncated", "empty", "other labels"])
def test_damaged_files_are_named(tmp_path, damage):
    folder = write(tmp_path, MNIST)
    images, labels = folder / "train-images-idx3-ubyte", folder / "train-labels-idx1-ubyte"
    if damage == "truncated":
        images.write_bytes(images.read_bytes()[:1000])
    elif damage == "empty":
        labels.write_bytes(b"")
    else:
        labels.write_bytes(struct.pack(">ii", 2049, 3) + bytes(3))
    refused(MNISTDataModule(root=str(tmp_path), download=False), match="train-images-idx3-ubyte")


@pytest.mark.real
@pytest.mark.parametrize(("module", "dataset"), SETS)
def test_the_real_files_are_read_as_torchvision_reads_them(real, module, dataset):
    data = module(root=str(real), download=False, batch_size=500)
    data.setup()
    images, labels = next(iter(data.test_dataloader()))
    theirs = dataset(root=str(real), train=False)
    assert torch.equal((images * 255).round().to(torch.uint8)[:, 0], theirs.data[:500])
    assert torch.equal(labels, theirs.targets[:500])
