import importlib.util
from pathlib import Path

import pytest
from PIL import Image

from filterscope.data.animals import ENGLISH, AnimalsDataModule
from filterscope.data.image_io import read_image
from filterscope.errors import UserError


def module(root, **options):
    options = {"image_size": 16, "num_workers": 0, "download": False} | options
    return AnimalsDataModule(root=str(root), **options)


def refused(root, match, **options):
    with pytest.raises(UserError, match=match) as caught:
        module(root, **options).setup()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("above", ["animals10/raw-img", "raw-img"])
def test_every_folder_has_its_english_name(tmp_path, above):
    for folder in ENGLISH:
        (tmp_path / above / folder).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (20, 20)).save(tmp_path / above / folder / f"{number}.jpeg")
    data = module(tmp_path)
    data.setup()
    assert data.class_names == tuple(sorted(ENGLISH.values()))
    _, labels, names = data.examples(10)
    assert [data.class_names[label] for label in labels] == [ENGLISH[Path(name).parent.name] for name in names]


def test_an_empty_root_says_where_to_get_the_data_and_where_to_put_it(tmp_path):
    refused(tmp_path, match=r"kaggle\.com/datasets/alessiocorrado99/animals10.*animals10/raw-img")


@pytest.mark.skipif(importlib.util.find_spec("kagglehub") is not None, reason="kagglehub is installed")
def test_without_kagglehub_the_extra_is_named(tmp_path):
    refused(tmp_path, match=r"kaggle\.com.*raw-img.*filterscope\[animals\]", download=True)


@pytest.mark.real
def test_the_one_real_sheep_is_too_few_to_split_and_can_be_left_out(real):
    refused(real, match=r"'sheep' has 1 image, too few for 3 splits.*data\.exclude=\[sheep\]")
    data = module(real, exclude=["sheep"])
    data.setup()
    assert data.num_classes == 9
    assert "sheep" not in data.class_names


@pytest.mark.real
def test_all_real_animals_decode_whatever_their_colour_mode(real):
    data = module(real, exclude=["sheep"], on_corrupt="skip")
    data.setup()
    assert data.skipped == ()


@pytest.mark.real
def test_real_files_of_odd_modes_read_as_pillow_reads_them(real):
    seen = set()
    for path in sorted((real / "animals10").rglob("*.*")):
        with Image.open(path) as image:
            if image.mode in ("RGB", *seen):
                continue
            seen.add(image.mode)
            pixels = read_image(str(path), num_channels=3)
            assert pixels.shape == (3, image.height, image.width)
            if image.mode == "CMYK":
                theirs = image.convert("RGB").resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
                assert pixels.float().mean((1, 2)).sub(pixels.new_tensor(theirs).float()).abs().max() < 2
    assert seen & {"CMYK", "L", "RGBA"}
