import json
import os

import numpy as np
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
    assert sum(map(len, parts)) == 24
    assert all(set(part) == {(0, 0), (80, 1), (160, 2)} for part in parts)


def test_split_folders_are_used_as_given(split_folder):
    data = module(split_folder)
    data.setup()
    assert data.has_test
    assert [len(part) for part in seen(data)] == [8, 8, 8]
    assert all("valid" in name for name in data.examples(8)[2])


def test_a_missing_validation_folder_is_cut_from_training(split_folder):
    (split_folder / "valid").rename(split_folder / ".away")
    train, val, test = map(len, seen(_set_up(split_folder, val_fraction=0.25)))
    assert (train + val, test) == (8, 8)
    assert val >= 2


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
    (one_folder / "bee" / "page.png").write_text("no image")
    refused(one_folder, match=r"bee/page\.png cannot be read.*data\.on_corrupt=skip")


def test_skipping_leaves_damaged_files_out_counts_them_and_keeps_the_labels(one_folder, caplog):
    (one_folder / "bee" / "page.png").write_text("no image")
    cut = one_folder / "cat" / "2.png"
    cut.write_bytes(cut.read_bytes()[:50])
    data = _set_up(one_folder, on_corrupt="skip")
    assert sorted(data.skipped) == sorted([str(one_folder / "bee" / "page.png"), str(cut)])
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


LAYOUTS = {
    "capitals": ("Training", "Testing"),
    "sets": ("train_set", "val_set", "test_set"),
    "images below": ("images/train", "images/val"),
    "years": ("train2017", "val2017"),
    "a wrapper in a wrapper": ("data/data/TRAIN", "data/data/Validation"),
    "images first": ("images_train", "images-valid"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_split_folders_are_found_under_their_common_names(tmp_path, layout, caplog):
    caplog.set_level("INFO")
    for folder in LAYOUTS[layout]:
        for name in ("ant", "bee"):
            for number in range(4):
                image(tmp_path / folder / name / f"{folder.replace('/', '')}{number}.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "1.txt").write_text("0 1 2 3 4")
    data = _set_up(tmp_path)
    assert data.class_names == ("ant", "bee")
    folders = [folder.rpartition("/")[2] for folder in LAYOUTS[layout]]
    assert all(folder in data.location for folder in folders)
    counts = {split: len(images) for split, images in data._splits.items()}
    assert sum(counts.values()) == 8 * len(folders)
    if layout == "capitals":
        assert counts["test"] == 8
        assert ("val" in counts, "train: Training, test: Testing" in data.location) == (True, True)
    else:
        assert counts["train"] == counts["val"] == 8


def test_what_was_found_is_described_with_counts(split_folder):
    (split_folder / "train" / "bee" / "train0.png").unlink()
    data = _set_up(split_folder)
    assert data.describe() == "train 7, val 8, test 8 images in 2 classes; smallest class 'bee': 3"


@pytest.mark.parametrize("layout", [("part1", "part2"), ("Teste", "Treino"), ("fold_a", "fold_b", "fold_c")])
def test_folders_that_hold_the_same_classes_are_no_classes(tmp_path, layout):
    for folder in layout:
        for name in ("ant", "bee"):
            image(tmp_path / folder / name / "1.png")
    refused(tmp_path, match=rf"{layout[0]} and {layout[1]}.*both hold the folders ant, bee.*name the folders above it")


def test_splits_below_the_classes_are_refused_in_words(tmp_path):
    for folder in ("ant/train", "ant/test", "bee/train", "bee/test"):
        image(tmp_path / folder / "1.png")
    refused(tmp_path, match=r"put the splits first, as in train/ant|put the splits first, as in test/ant")


def test_classes_may_have_folders_of_their_own(tmp_path):
    for folder in ("cat/siamese", "cat/persian", "dog/poodle", "bus/part1", "train/part1"):
        for number in range(3):
            image(tmp_path / folder / f"{number}.png")
    (tmp_path / "train" / "part1").rename(tmp_path / "train" / ".away")
    for number in range(3):
        image(tmp_path / "train" / f"{number}.png")
    assert _set_up(tmp_path).class_names == ("bus", "cat", "dog", "train")


def test_a_folder_that_is_a_class_or_a_split_is_asked_about(one_folder):
    image(one_folder / "test" / "1.png")
    refused(one_folder, match=r"a folder 'test', which is a class or a split; .*data\.exclude=\[test\]")
    assert _set_up(one_folder, exclude=["test"]).class_names == ("ant", "bee", "cat")


def test_two_folders_of_one_split_are_refused(split_folder):
    image(split_folder / "Training" / "ant" / "1.png")
    refused(split_folder, match="two folders for the split train: Training and train")


def test_a_test_folder_with_one_unknown_folder_has_no_labels(split_folder, caplog):
    caplog.set_level("INFO")
    (split_folder / "test").rename(split_folder / ".away")
    image(split_folder / "test" / "unknown" / "1.png")
    assert not _set_up(split_folder).has_test
    assert "no test split" in caplog.text


def test_folders_and_files_of_the_system_are_no_classes(one_folder):
    for folder in (".ipynb_checkpoints", "__MACOSX", "@eaDir", "ant/.ipynb_checkpoints", "ant/@eaDir"):
        image(one_folder / folder / "0.png")
    (one_folder / "bee" / "Desktop.ini").write_text("x")
    data = _set_up(one_folder)
    assert sum(map(len, data._splits.values())) == 24


def test_files_beside_the_images_are_left_out_and_counted(one_folder, caplog):
    caplog.set_level("INFO")
    for name in ("ant/1.xml", "ant/2.xml", "bee/notes.txt", "bee/clip.mp4", "cat/README"):
        (one_folder / name).write_text("text")
    assert sum(map(len, _set_up(one_folder)._splits.values())) == 24
    assert "left out 5 files that are not images (2 .xml, 1 .mp4, 1 .txt, 1 no extension)" in caplog.text


def test_links_are_followed_and_a_file_is_used_once(one_folder, tmp_path_factory, caplog):
    linked = tmp_path_factory.mktemp("linked")
    (linked / "ant").symlink_to(one_folder / "ant")
    (linked / "bee").mkdir()
    (linked / "bee" / "part").symlink_to(one_folder / "bee")
    (linked / "bee" / "again").symlink_to(one_folder / "bee" / "0.png")
    (linked / "cat").mkdir()
    for number in range(8):
        (linked / "cat" / f"{number}.png").symlink_to(one_folder / "cat" / f"{number}.png")
    (linked / "cat" / "circle").symlink_to(linked / "cat")
    os.link(one_folder / "cat" / "0.png", linked / "cat" / "hard.png")
    assert sum(map(len, _set_up(linked)._splits.values())) == 24
    assert "2 of the files in" in caplog.text
    (linked / "cat" / "lost.png").symlink_to("/nowhere.png")
    refused(linked, match=r"lost\.png cannot be read.*a link to a file that is not there")
    (linked / "cat" / "lost.png").unlink()
    (linked / "bee" / "cat.png").symlink_to(one_folder / "cat" / "1.png")
    refused(linked, match="is in two classes, 'bee' and 'cat'")


def test_images_in_two_splits_are_counted(split_folder, caplog):
    (split_folder / "valid" / "ant" / "same.png").symlink_to(split_folder / "train" / "ant" / "train0.png")
    _set_up(split_folder)
    assert "1 of the val images are train images, too" in caplog.text


def test_copies_of_images_in_another_split_are_counted(split_folder, caplog):
    for number, path in enumerate(sorted(split_folder.rglob("*.png"))):
        image(path, number)  # no two alike
    copy = split_folder / "train" / "ant" / "train0.png"
    target = split_folder / "valid" / copy.parent.name
    (target / "copy 1.png").write_bytes(copy.read_bytes())
    (target / "copy 2.png").write_bytes(copy.read_bytes())
    (target / "no copy.png").write_bytes(copy.read_bytes()[:-1] + b"x")
    module(split_folder).setup()
    assert "2 of the val images are copies of train images, byte by byte" in caplog.text


def test_a_folder_that_may_not_be_read_is_named(one_folder, monkeypatch):
    closed = str(one_folder / "bee" / "closed")
    image(one_folder / "bee" / "closed" / "1.png")
    scandir = os.scandir

    def refuse(path):
        if str(path) == closed:
            raise PermissionError(13, "Permission denied", closed)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    refused(one_folder, match="the folder .*bee/closed cannot be read: Permission denied")


def test_looking_needs_no_second_image_of_a_class(one_folder):
    for number in range(1, 8):
        (one_folder / "bee" / f"{number}.png").unlink()
    data = module(one_folder)
    data.setup("predict")
    assert set(data.labels("val").tolist()) == {0, 1, 2}
    with pytest.raises(UserError, match="class 'bee' has 1 image, too few for 3 splits"):
        data.setup("fit")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"01": "rose", "02": "rose", "10": "tulip"}, ("rose (01)", "rose (02)", "tulip")),
        ({"1": "rose", "2": "lily", "10": "tulip"}, ("rose", "lily", "tulip")),
        ({"rose": "01", "lily": "02", "tulip": "10"}, ("rose", "lily", "tulip")),
        ({"rose": 1, "lily": 2, "tulip": 10}, None),
        (["rose", "lily", "tulip"], None),
        ({"0": "rose", "1": "lily", "2": "tulip"}, None),
    ],
)
def test_a_name_file_of_any_form_names_the_right_folder_or_is_refused(tmp_path, names, expected):
    for label, folder in enumerate(("01", "02", "10")):
        for number in range(3):
            image(tmp_path / "data" / folder / f"{number}.png", 20 * label)
    (tmp_path / "cat_to_name.json").write_text(json.dumps(names), encoding="utf-8-sig")
    if expected is None:
        refused(tmp_path / "data", match="cat_to_name.json has no name for the class folder '0[12]'|'10'")
        return
    data = _set_up(tmp_path)
    assert data.class_names == expected
    assert {pair for part in seen(data) for pair in part} == {(0, 0), (20, 1), (40, 2)}


def test_twelve_bit_images_are_scaled_alike_and_said(tmp_path, caplog):
    caplog.set_level("INFO")
    for name, top in (("dark", 900), ("bright", 4095)):
        (tmp_path / name).mkdir()
        for number in range(4):
            Image.fromarray(np.full((8, 8), top - number, dtype=np.uint16)).save(tmp_path / name / f"{number}.png")
    data = _set_up(tmp_path, num_channels=1)
    assert "8 images have more than 8 bits a value; their white is 2^12" in caplog.text
    assert data.bit_depth == 12
    assert {value for part in seen(data) for value, label in part if label == 0} == {255}
    assert {value for part in seen(data) for value, label in part if label == 1} == {56}


def _set_up(root, **options):
    data = module(root, **options)
    data.setup()
    return data


def test_images_outside_of_class_folders_and_below_them_are_told(one_folder, caplog):
    caplog.set_level("INFO", logger="filterscope")
    image(one_folder / "stray.png")
    image(one_folder / "ant" / "red" / "1.png")
    data = module(one_folder)
    data.setup()
    assert "the class ant includes the images in ant/red" in caplog.text
    assert "1 images lie in no class folder and are not used" in caplog.text
    assert sum(map(len, seen(data))) == 25


def test_names_in_utf_16_are_read_and_blank_ones_are_refused(one_folder):
    file = one_folder / "cat_to_name.json"
    file.write_text(json.dumps({"ant": "fourmi", "bee": "abeille", "cat": "félin"}), encoding="utf-16")
    data = module(one_folder)
    data.setup()
    assert data.class_names == ("fourmi", "abeille", "félin")
    for name in (" ", True):
        file.write_text(json.dumps({"ant": name, "bee": "b", "cat": "c"}))
        refused(one_folder, match="no name for the class folder 'ant'")


@pytest.mark.parametrize(("root", "match"), [("", "data.root is empty"), ("~nobody-of-that-name/x", "no such user")])
def test_a_root_that_is_no_path_is_refused(root, match):
    refused(root, match=match)
