from itertools import chain

import numpy as np
import pytest
import torch
from PIL import Image

from filterscope.config.instantiate import instantiate
from filterscope.data.folder import FolderDataModule
from filterscope.data.image_io import BadImageError
from filterscope.data.preprocessing import Augmentation, RandomTransform, fixed_transform
from filterscope.errors import UserError
from filterscope.registry import target_of


@pytest.fixture
def flowers(tmp_path):
    """Two classes of ten images, 40 × 50 pixels."""
    rng = np.random.default_rng(0)
    for name in ("daisy", "rose"):
        (tmp_path / name).mkdir()
        for number in range(10):
            pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    return tmp_path


def module(root, **options):
    options = {"image_size": 16, "batch_size": 4, "num_workers": 0, "augment": Augmentation(color=0.2)} | options
    return FolderDataModule(root=str(root), **options)


def two_epochs(data):
    loader = data.train_dataloader()
    batches = []
    for epoch in (0, 1):
        data.epoch = epoch
        batches += list(loader)
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def test_two_persistent_workers_give_the_same_bits_as_none(flowers):
    alone, together = two_epochs(module(flowers)), two_epochs(module(flowers, num_workers=2))
    assert torch.equal(alone[0], together[0])
    assert torch.equal(alone[1], together[1])


def test_an_epoch_does_not_depend_on_the_epochs_before(flowers):
    images, _ = two_epochs(module(flowers))
    resumed = module(flowers)
    resumed.epoch = 1
    again = torch.cat([images for images, _ in resumed.train_dataloader()])
    assert torch.equal(images[len(again) :], again)
    assert not torch.equal(images[: len(again)], again)


def test_loading_leaves_the_global_random_state_alone(flowers):
    data = module(flowers)
    data.setup()
    before = torch.get_rng_state()
    list(data.train_dataloader())
    list(data.val_dataloader())
    data.examples(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_batch_is_images_in_zero_to_one_with_their_labels(flowers):
    images, labels = next(iter(module(flowers).train_dataloader()))
    assert images.shape == (4, 3, 16, 16)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert 0 <= images.min() < images.max() <= 1


def test_validation_images_are_not_augmented_and_in_a_fixed_order(flowers):
    data = module(flowers)
    first, again = (torch.cat([images for images, _ in data.val_dataloader()]) for _ in range(2))
    assert torch.equal(first, again)


def test_the_fixed_transform_is_pillows_resize_and_a_center_crop():
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    ours = fixed_transform(image_size=24, resize_ratio=1.25)(torch.from_numpy(pixels).permute(2, 0, 1))
    theirs = np.array(Image.fromarray(pixels).resize((45, 30), Image.Resampling.BILINEAR))[3:27, 10:34]
    assert (ours.permute(1, 2, 0).int() - torch.from_numpy(theirs).int()).abs().max() <= 2


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_file_found_damaged_while_loading_is_named_in_one_line(flowers, num_workers):
    file = flowers / "rose" / "3.png"
    file.write_bytes(file.read_bytes()[:2000])
    data = module(flowers, num_workers=num_workers)
    loaders = chain(data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    with pytest.raises(BadImageError) as caught:
        list(loaders)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_last_training_batch_of_one_image_is_dropped(flowers):
    data = module(flowers, val_fraction=0.15, test_fraction=0.0, batch_size=15)
    assert [len(images) for images, _ in data.train_dataloader()] == [15]


def test_ranks_train_on_different_images(flowers, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    seen = []
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        seen.append(torch.cat([images for images, _ in module(flowers, augment=None).train_dataloader()]))
    assert len(seen[0]) == len(seen[1])
    assert len(torch.cat(seen).flatten(1).unique(dim=0)) == 12


def test_more_processes_than_images_are_an_error(flowers, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "99")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match="99 processes are more than the 12 images"):
        module(flowers).train_dataloader()


@pytest.mark.parametrize(
    "options",
    [
        {"crop_area": [0.5]},
        {"crop_area": [0.9, 0.5]},
        {"crop_area": [0, 1]},
        {"crop_ratio": [2, 1]},
        {"flip": 1.5},
        {"color": -0.1},
    ],
)
def test_impossible_augmentation_names_its_option(options):
    with pytest.raises(UserError, match=next(iter(options))):
        instantiate({"_target_": target_of(Augmentation), **options}, where="data.augment")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("options", [{"policy": "rand", "erase": 0.5}, {"policy": "trivial"}, {"erase": 1.0}])
def test_library_augmentations_follow_from_seed_epoch_and_index_alone(options, channels):
    transform = RandomTransform(augment=Augmentation(**options), image_size=32, resize_ratio=1.0, seed=3)
    images = [torch.randint(0, 256, (channels, 40, 50), dtype=torch.uint8) for _ in range(4)]
    state = torch.random.get_rng_state()
    whole = transform(images, epoch=2, indices=[5, 6, 7, 8])
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(9)
    assert torch.equal(transform(images[1:3], epoch=2, indices=[6, 7]), whole[1:3])
    assert not torch.equal(transform(images, epoch=3, indices=[5, 6, 7, 8]), whole)
    plain = RandomTransform(augment=Augmentation(), image_size=32, resize_ratio=1.0, seed=3)
    assert not torch.equal(plain(images, epoch=2, indices=[5, 6, 7, 8]), whole)
