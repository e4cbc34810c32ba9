import hashlib
import json
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import Flowers102

from filterscope.data import flowers
from filterscope.data.flowers import FlowersDataModule
from filterscope.errors import UserError


def module(root, **options):
    return FlowersDataModule(root=str(root), **({"image_size": 16, "num_workers": 0, "download": False} | options))


@pytest.fixture
def official(tmp_path):
    """Three classes, of nine training, three validation and three test images, laid out as torchvision does."""
    folder = tmp_path / "flowers-102"
    (folder / "jpg").mkdir(parents=True)
    labels = [102, 1, 50] * 5
    for number in range(1, 16):
        Image.new("RGB", (20, 30), (16 * number,) * 3).save(folder / "jpg" / f"image_{number:05d}.jpg")
    savemat(folder / "imagelabels.mat", {"labels": [labels]})
    savemat(folder / "setid.mat", {"trnid": [[*range(1, 10)]], "valid": [[10, 11, 12]], "tstid": [[13, 14, 15]]})
    return tmp_path


ABSENT = [name for number, name in enumerate(Flowers102.classes, start=1) if number not in (1, 50, 102)]


@pytest.mark.parametrize("inside", [False, True])
def test_official_splits_and_names_below_root_or_in_it(official, inside):
    data = module(official / "flowers-102" if inside else official, exclude=ABSENT)
    data.setup()
    assert data.class_names == ("pink primrose", Flowers102.classes[49], "blackberry lily")
    assert data.has_test
    assert [Path(name).name for name in data.examples(3)[2]] == [f"image_{n:05d}.jpg" for n in (11, 12, 10)]


def test_an_incomplete_test_split_is_left_out_in_one_line(official, caplog):
    (official / "flowers-102" / "jpg" / "image_00014.jpg").unlink()
    data = module(official, exclude=ABSENT)
    with caplog.at_level("INFO"):
        data.setup()
    assert not data.has_test
    assert "no test split: 1 of its 3 images" in caplog.text


def refused(root, match, **options):
    with pytest.raises(UserError, match=match) as caught:
        module(root, **options).setup()
    assert "\n" not in str(caught.value)


def test_an_incomplete_training_split_is_an_error(official):
    (official / "flowers-102" / "jpg" / "image_00004.jpg").unlink()
    refused(official, match=r"1 of the 9 train images are not there.*image_00004\.jpg")


def test_damaged_tables_are_an_error(official):
    (official / "flowers-102" / "setid.mat").write_bytes(b"nothing")
    refused(official, match="is damaged")


def test_an_empty_root_says_what_is_missing(tmp_path):
    refused(tmp_path, match="flowers-102/jpg")
    refused(tmp_path / "none", match="does not exist")


@pytest.fixture
def folders(tmp_path):
    for split in ("train", "valid", "test"):
        for number in (1, 2, 10, 102):
            folder = tmp_path / "flower_data" / split / str(number)
            folder.mkdir(parents=True)
            Image.new("RGB", (20, 20), (2 * number,) * 3).save(folder / "image.jpg")
    return tmp_path


def test_numbered_folders_are_flowers_by_their_own_number(folders):
    data = module(folders)
    data.setup()
    assert data.class_names == tuple(Flowers102.classes[number - 1] for number in (1, 2, 10, 102))
    images, labels, names = data.examples(4)
    assert [int(Path(name).parent.name) for name in names] == [1, 2, 10, 102]
    assert labels.tolist() == [0, 1, 2, 3]
    assert torch.allclose(images.mean((1, 2, 3)) * 255, torch.tensor([2.0, 4, 20, 204]), atol=3)


def test_all_102_folders_get_the_name_in_the_file(tmp_path):
    names = {str(number): f"name of {number}" for number in range(1, 103)}
    for split in ("train", "valid"):
        for number in names:
            (tmp_path / split / number).mkdir(parents=True)
            Image.new("L", (8, 8)).save(tmp_path / split / number / "a.png")
    (tmp_path / "cat_to_name.json").write_text(json.dumps(names))
    data = module(tmp_path)
    data.setup()
    _, labels, files = data.examples(102)
    assert [data.class_names[label] for label in labels] == [names[Path(file).parent.name] for file in files]


def test_without_a_network_the_host_the_files_and_the_folder_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # a proxy that does not exist: no host can be reached
    refused(
        tmp_path,
        match=r"could not download Flowers 102 from www\.robots\.ox\.ac\.uk.*102flowers\.tgz.*flowers-102 by hand",
        download=True,
    )


@pytest.fixture
def published(official, served, monkeypatch):
    """The files of `official` as its host serves them; `data` is an empty folder."""
    folder, address = served
    made = official / "flowers-102"
    with tarfile.open(folder / "102flowers.tgz", "w:gz") as archive:
        archive.add(made / "jpg", "jpg")
    for table in ("imagelabels.mat", "setid.mat"):
        shutil.copy(made / table, folder)
    digests = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in flowers._MD5}
    monkeypatch.setattr(flowers, "_URL", address)
    monkeypatch.setattr(flowers, "_MD5", digests)
    return folder


@pytest.mark.usefixtures("published")
def test_a_download_is_the_whole_data_set(tmp_path):
    data = module(tmp_path / "data", exclude=ABSENT, download=True)
    data.setup()
    assert [len(data.labels(split)) for split in ("train", "val", "test")] == [9, 3, 3]
    made = tmp_path / "data" / "flowers-102"
    assert {file.name for file in made.iterdir()} - {".lock"} == {"jpg", "imagelabels.mat", "setid.mat"}


@pytest.mark.parametrize("name", ["102flowers.tgz", "setid.mat"])
def test_a_download_with_another_hash_leaves_no_data_set(tmp_path, published, name):
    (published / name).write_bytes((published / name).read_bytes()[:-1])
    refused(tmp_path / "data", match="could not download Flowers 102 .*hash is not the published", download=True)
    refused(tmp_path / "data", match="flowers-102/jpg")


def test_a_killed_download_is_completed_by_the_next_one(tmp_path, published):
    made = tmp_path / "data" / "flowers-102"
    (made / ".unpacked" / "jpg").mkdir(parents=True)
    (made / "..unpacked.partial" / "jpg").mkdir(parents=True)
    (made / ".102flowers.tgz.99.partial").write_bytes(b"half")
    (made / "102flowers.tgz").write_bytes((published / "102flowers.tgz").read_bytes()[:100])
    module(tmp_path / "data", exclude=ABSENT, download=True).setup()
    assert {file.name for file in made.iterdir()} - {".lock"} == {"jpg", "imagelabels.mat", "setid.mat"}


@pytest.mark.real
def test_the_real_flowers_are_those_of_torchvision(real):
    data = module(real)
    data.setup()
    for split, loader in (("train", data.train_dataloader()), ("val", data.val_dataloader())):
        theirs = Flowers102(root=str(real), split=split)
        assert [str(path) for path in theirs._image_files] == list(loader.dataset.images.paths)
        assert theirs._labels == loader.dataset.images.labels.tolist()
    assert data.class_names == tuple(theirs.classes)
    assert (data.num_classes, data.has_test) == (102, False)


@pytest.mark.real
def test_real_flowers_in_class_folders_have_the_official_names(real, tmp_path):
    official = module(real)
    official.setup()
    images, labels, names = official.examples(102)
    for split in ("train", "valid"):
        for label, name in zip(labels.tolist(), names, strict=True):
            folder = tmp_path / "flower_data" / split / str(label + 1)
            folder.mkdir(parents=True)
            shutil.copy(name, folder)
    data = module(tmp_path)
    data.setup()
    again = data.examples(102)
    assert data.class_names == official.class_names
    assert [Path(name).name for name in again[2]] == [Path(name).name for name in names]
    assert torch.equal(again[0], images)
