"""Every function of the notebook on layer taps, compared with an independent result."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from visualize import visualize

from filterscope.errors import UserError
from planted import Compose, images_below


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the root of images that are listed in a CSV file without labels."""
    root = tmp_path_factory.mktemp("digits")
    names = images_below(root / "MNIST" / "train", 20, size=28)
    with (root / "MNIST" / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["filename"], *([name] for name in names)])
    return root


def taps(composed: Compose, digits: Path, folder: Path, *overrides: str) -> Path:
    cfg = composed(
        "experiment=layer_taps", "model.weights=null", f"data.root={digits}", "data.image_size=48",
        *overrides, config="visualize",
    )  # fmt: skip
    torch.manual_seed(0)  # the random network's weights
    visualize(cfg, folder)
    return folder


def test_layer_taps_saves_and_draws_the_outputs_of_the_named_layers(
    digits: Path, composed: Compose, tmp_path: Path
) -> None:
    folder = taps(composed, digits, tmp_path)
    saved = np.load(folder / "taps.npz", allow_pickle=False)
    assert set(saved) == {"images", "conv_1", "conv_2", "conv_4"}
    torch.manual_seed(0)
    network = torchvision.models.get_model("vgg16", weights=None).eval()
    maps = torch.from_numpy(saved["images"])
    normalised = torchvision.transforms.functional.normalize(maps, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    found = []
    with torch.no_grad():
        x = normalised
        for module in network.features[:8]:
            x = module(x.clone())
            found += [x.clone()] if isinstance(module, torch.nn.Conv2d) else []
    for number in (1, 2, 4):
        np.testing.assert_allclose(saved[f"conv_{number}"], found[number - 1], rtol=1e-4, atol=1e-5)
        assert (folder / "pictures" / "activations" / f"conv_{number}.png").is_file()
    with Image.open(folder / "pictures" / "examples" / "batch.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert np.ptp(pixels, axis=2).max() < 25  # coloured noise drawn in grey on a nearly grey background
    assert (pixels.min(axis=2) > 100).sum() > 5000  # and not empty


def test_the_random_image_depends_on_the_seed_only(digits: Path, composed: Compose, tmp_path: Path) -> None:
    first, again, other = (
        taps(composed, digits, tmp_path / name, "model=alexnet", "data.image_size=64", "visuals=batch", f"seed={seed}")
        / "pictures"
        / "examples"
        / "batch.png"
        for name, seed in (("a", 128), ("b", 128), ("c", 5))
    )
    assert first.read_bytes() == again.read_bytes() != other.read_bytes()


def test_a_tap_of_an_unknown_layer_is_an_error_with_the_known_names(
    digits: Path, composed: Compose, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"unknown layer 'conv_14'.*block1_conv1"):
        taps(composed, digits, tmp_path, "visuals.taps.layers=[conv_14]")
