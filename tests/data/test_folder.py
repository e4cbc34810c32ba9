import json

import pytest
import torch
from PIL import Image

from filterscope.config.instantiate import instantiate
from filterscope.data.folder import FolderDataModule
from filterscope.errors import UserError


def image(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (value, value, value)).save(path)


@pytest.fixture
def one_folder(tmp_path):
    for label, name in enumerate(("ant", "bee", "cat")):
        for number in range(8):
            image(tmp_path / name / f"{number}.png", 80 * label)
    return tmp_path


@pytest.fixture
def split_folder(tmp_path):
    for split in ("train", "valid", "test"):
        for label, name in enumerate(("ant", "bee")):
            for number in range(4):
                image(tmp_path / split / name / f"{split}{number}.png", 80 * label)
    return tmp_path


def module(root, **options):
    options = {"image_size": 8, "num_workers": 0, "batch_size": 100} | options
    return FolderDataModule(root=str(root), **options)


def seen(data):
    """The values of the pixels and the labels, split by split."""
    loaders = [data.train_dataloader(), data.val_dataloader(), *([data.test_dataloader()] if data.has_test else [])]
    return [
        [(round(float(i.max() * 255)), int(n)) for i, n in zip(*batch, strict=True)] for ld in loaders for batch in ld
    ]


def refused(root, match, **options):
    with pytest.raises(UserError, match=match) as caught:
        module(root, **options).setup()
    assert "\n" not in str(caught.value)


def test_one_folder_is_split_with_the_right_labels(one_folder):
    data = module(one_folder)
    data.setup("fit")
    assert data.class_names == ("ant", "bee", "cat")
    parts = seen(data)
    assert [len(part) for part in parts] == [18, 3, 3]
    assert {pair for part in parts for pair in part} == {(0, 0), (80, 1), (160, 2)}


def test_split_folders_are_used_as_given(split_folder):
    data = module(split_folder)
    data.setup()
    assert data.has_test
    assert [len(part) for part in seen(data)] == [8, 8, 8]
    assert all("valid" in name for name in data.examples(8)[2])


def test_a_missing_validation_folder_is_cut_from_training(split_folder):
    (split_folder / "valid").rename(split_folder / ".away")
    assert [len(part) for part in seen(_set_up(split_folder, val_fraction=0.25))] == [6, 2, 8]


def test_without_a_test_folder_there_is_no_test_split(split_folder):
    (split_folder / "test").rename(split_folder / ".away")
    data = _set_up(split_folder)
    assert not data.has_test
    with pytest.raises(UserError, match="no test split; it has train, val"):
        data.test_dataloader()


def test_a_test_folder_without_classes_is_left_out(split_folder):
    for name in ("ant", "bee"):
        (split_folder / "test" / name).rename(split_folder / f".{name}")
    image(split_folder / "test" / "unknown.png")
    assert not _set_up(split_folder).has_test


def test_a_second_setup_changes_nothing(one_folder):
    data = _set_up(one_folder)
    before = data.examples(3)
    data.setup("validate")
    assert torch.equal(before[0], data.examples(3)[0])


def test_excluded_classes_are_removed_and_labels_stay_consecutive(one_folder):
    data = _set_up(one_folder, exclude=["bee"])
    assert (data.class_names, data.num_classes) == (("ant", "cat"), 2)
    assert {pair for part in seen(data) for pair in part} == {(0, 0), (160, 1)}


def test_numbered_folders_are_named_by_their_own_number(tmp_path):
    names = {str(number): f"flower {number}" for number in range(1, 13)}
    for folder in names:
        for number in range(3):
            image(tmp_path / folder / f"{number}.png", 20 * int(folder))
    (tmp_path / "cat_to_name.json").write_text(json.dumps(names))
    data = _set_up(tmp_path)
    assert data.class_names == tuple(f"flower {number}" for number in range(1, 13))
    assert {(value // 20, label + 1) for part in seen(data) for value, label in part} == {(n, n) for n in range(1, 13)}


def test_numbers_can_be_excluded_as_numbers(tmp_path):
    for folder in ("1", "2", "10"):
        for number in range(3):
            image(tmp_path / folder / f"{number}.png")
    assert _set_up(tmp_path, exclude=[2]).class_names == ("1", "10")


def test_names_may_have_spaces_and_any_letters_and_hidden_files_are_ignored(tmp_path):
    for folder in ("Löwen zahn", "菊 花"):
        for number in range(3):
            image(tmp_path / folder / f"Bild {number} ü.png")
        (tmp_path / folder / ".DS_Store").write_bytes(b"x")
        (tmp_path / folder / "Thumbs.db").write_bytes(b"x")
    assert _set_up(tmp_path).class_names == ("Löwen zahn", "菊 花")


def test_a_damaged_file_is_named(one_folder):
    (one_folder / "bee" / "notes.txt").write_text("no image")
    refused(one_folder, match=r"bee/notes\.txt cannot be read.*data\.on_corrupt=skip")


def test_skipping_leaves_damaged_files_out_counts_them_and_keeps_the_labels(one_folder, caplog):
    (one_folder / "bee" / "notes.txt").write_text("no image")
    cut = one_folder / "cat" / "2.png"
    cut.write_bytes(cut.read_bytes()[:50])
    data = _set_up(one_folder, on_corrupt="skip")
    assert sorted(data.skipped) == sorted([str(one_folder / "bee" / "notes.txt"), str(cut)])
    assert "left out 2 damaged files" in caplog.text
    parts = seen(data)
    assert sum(map(len, parts)) == 23
    assert {pair for part in parts for pair in part} == {(0, 0), (80, 1), (160, 2)}


def test_skipping_every_image_of_a_class_is_an_error(one_folder):
    for file in (one_folder / "cat").iterdir():
        file.write_bytes(b"")
    refused(one_folder, match=r"'cat' has no training images.*data\.exclude=\[cat\]", on_corrupt="skip")


def test_skipping_every_image_of_a_split_is_an_error(split_folder):
    for file in (split_folder / "valid").rglob("*.png"):
        file.write_bytes(b"")
    refused(split_folder, match="no val images that can be read", on_corrupt="skip")


def test_missing_and_empty_folders_are_named(tmp_path):
    refused(tmp_path / "none", match="data.root=.*none: there is no such folder")
    refused(tmp_path, match="holds no class folders")


def test_a_class_folder_without_images_names_the_option(one_folder):
    (one_folder / "dog").mkdir()
    refused(one_folder, match=r"class 'dog' has no training images.*data\.exclude=\[dog\]")
    assert _set_up(one_folder, exclude=["dog"]).num_classes == 3


def test_a_class_only_in_the_validation_images_is_an_error(split_folder):
    image(split_folder / "valid" / "cow" / "1.png")
    refused(split_folder, match="'cow' that the training images do not have")


def test_validation_without_training_is_an_error(split_folder):
    (split_folder / "train").rename(split_folder / ".away")
    refused(split_folder, match="no train folder")


def test_an_unknown_class_to_exclude_lists_the_classes(one_folder):
    refused(one_folder, match="'sheep', which is no class of .*ant, bee, cat", exclude=["sheep"])
    refused(one_folder, match=r"'bees' \(did you mean bee\?\), which is no class of", exclude=["bees"])


def test_a_single_class_is_an_error(one_folder):
    refused(one_folder, match="at least 2", exclude=["ant", "bee"])


def test_no_validation_images_at_all_is_an_error(one_folder):
    refused(one_folder, match=r"data\.val_fraction is 0", val_fraction=0.0)


@pytest.mark.parametrize("content", ["{", "[]", '{"ant": "Ameise"}'])
def test_a_name_file_that_does_not_name_every_folder_is_an_error(one_folder, content):
    (one_folder / "cat_to_name.json").write_text(content)
    refused(one_folder, match="cat_to_name.json")


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"image_size": 0},
        {"num_workers": -1},
        {"num_channels": 2},
        {"seed": -1},
        {"resize_ratio": 0.5},
    ],
)
def test_impossible_options_are_named(one_folder, options):
    node = {"_target_": "filterscope.data.folder.FolderDataModule", "root": str(one_folder), **options}
    with pytest.raises(UserError, match=next(iter(options))) as caught:
        instantiate(node, where="data")
    assert "\n" not in str(caught.value)


def _set_up(root, **options):
    data = module(root, **options)
    data.setup()
    return data
