import itertools
from collections import Counter

import pytest
import torch

from filterscope.config.instantiate import instantiate
from filterscope.data.preprocessing import Augmentation
from filterscope.data.synthetic_flowers import CLASSES, SyntheticFlowersDataModule, class_appearance, class_names
from filterscope.errors import UserError
from filterscope.registry import target_of

AUGMENT = {"_target_": target_of(Augmentation)}


def module(**options):
    options = {"image_size": 32, "num_train": 40, "num_val": 20, "num_test": 20, "batch_size": 40} | options
    data = SyntheticFlowersDataModule(**options)
    data.setup()
    return data


def pixels(data):
    return torch.cat([images for loader in (data.val_dataloader(), data.test_dataloader()) for images, _ in loader])


def test_the_same_seed_draws_the_same_flowers_and_another_does_not():
    assert torch.equal(pixels(module()), pixels(module()))
    assert not torch.equal(pixels(module()), pixels(module(seed=1)))


def test_drawing_leaves_threads_and_the_global_random_state_alone():
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    module()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_no_two_images_are_equal():
    data = module()
    images = torch.cat([next(iter(data.train_dataloader()))[0], pixels(data)])
    assert len(images.flatten(1).unique(dim=0)) == 80


def test_classes_are_equally_frequent():
    labels = torch.cat([labels for _, labels in module().train_dataloader()])
    assert labels.bincount().tolist() == [4] * 10


@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize("image_size", [28, 96])
def test_any_size_and_both_numbers_of_channels(image_size, num_channels):
    images, _, names = module(image_size=image_size, num_channels=num_channels).examples(10)
    assert images.shape == (10, num_channels, image_size, image_size)
    assert images.std() > 0.1
    assert len(set(names)) == 10


@pytest.mark.parametrize("known", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
def test_one_or_two_of_shape_stripes_and_colour_do_not_determine_the_class(known):
    best = len({tuple(c[k] for k in known) for c in CLASSES})  # guesses that can be right, one for each sight
    assert best <= (4 if len(known) == 1 else 7)


def test_for_each_factor_some_classes_differ_only_in_it():
    alone = Counter()
    for one, other in itertools.combinations(CLASSES, 2):
        different = [k for k in range(3) if one[k] != other[k]]
        alone.update(different if len(different) == 1 else [])
    assert all(alone[factor] >= 2 for factor in range(3))


def test_class_names_describe_all_three_factors():
    assert len(set(class_names(3))) == len(set(class_names(1))) == len(CLASSES)
    assert all(name.count(",") == 2 for name in class_names(3))


def test_stripes_have_the_angle_of_the_class():
    data = module(image_size=96, num_train=10, num_val=60)
    images, labels, _ = data.examples(60)
    grey = images.mean(1)
    window = torch.hann_window(40)[:, None] * torch.hann_window(40)
    middle = grey[:, 28:68, 28:68]
    power = torch.fft.fft2((middle - middle.mean((1, 2), keepdim=True)) * window).abs() ** 2
    f = torch.fft.fftfreq(40)
    fy, fx = torch.meshgrid(f, f, indexing="ij")
    band = (torch.hypot(fx, fy) > 0.1) & (torch.hypot(fx, fy) < 0.2)
    double = 2 * torch.atan2(fy, fx)
    turned = torch.atan2((power * band * double.sin()).sum((1, 2)), (power * band * double.cos()).sum((1, 2))) / 2
    wanted = class_appearance(labels, num_channels=3).angles
    error = torch.remainder(turned - wanted + torch.pi / 2, torch.pi) - torch.pi / 2
    assert error.abs().median() < 0.15


def test_colours_are_those_of_the_class():
    images, labels, _ = module(image_size=64).examples(20)
    by_color = {
        color: images[[CLASSES[label][2] == color for label in labels.tolist()]].mean((0, 2, 3)).tolist()
        for color in range(3)
    }
    violet, yellow, red = by_color[0], by_color[1], by_color[2]
    assert violet[2] > violet[0] > violet[1]
    assert yellow[0] > yellow[1] > yellow[2]
    assert red[0] - red[1] > yellow[0] - yellow[1]


@pytest.mark.parametrize(
    "options", [{"augment": AUGMENT}, {"image_size": 8}, {"num_train": 5}, {"num_val": 0}, {"num_test": -1}]
)
def test_impossible_options_are_named(options):
    with pytest.raises(UserError, match=next(iter(options))):
        instantiate({"_target_": target_of(SyntheticFlowersDataModule), **options}, where="data")


def test_no_test_images_make_no_test_split():
    assert not module(num_test=0).has_test
