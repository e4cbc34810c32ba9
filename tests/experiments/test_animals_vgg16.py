"""Every function of the Animals-10 notebook, compared with an independent result."""

from pathlib import Path

import pytest
import torch
from train import train
from visualize import visualize

from filterscope.config.from_checkpoint import load
from filterscope.errors import UserError
from planted import QUICK, Compose, images_below, pictures, planted_vgg16

ANIMALS = {
    "cane": "dog", "cavallo": "horse", "elefante": "elephant", "farfalla": "butterfly", "gallina": "chicken",
    "gatto": "cat", "mucca": "cow", "pecora": "sheep", "ragno": "spider", "scoiattolo": "squirrel",
}  # fmt: skip


def test_animals_vgg16_trains_the_appended_linear_and_nothing_else(composed: Compose, tmp_path: Path) -> None:
    for name in ANIMALS:
        images_below(tmp_path / "raw-img" / name, 4, size=128)
    weights = planted_vgg16(tmp_path / "vgg16.pth")
    cfg = composed(
        "experiment=animals_vgg16", f"model.weights={weights}", f"data.root={tmp_path}", "data.image_size=128",
        *QUICK,
    )  # fmt: skip
    train(cfg, tmp_path / "run")
    classifier = load(tmp_path / "run")
    assert set(classifier.class_names) == set(ANIMALS.values())
    assert classifier.head.weight.shape == (10, 1000)
    before = torch.load(weights, weights_only=True)
    after = classifier.backbone.network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    ends = [f"activations/block{i}_pool" for i in range(1, 6)]
    assert pictures(tmp_path / "run") >= {"examples/classes", "predictions/val", *ends}
    # The notebook cuts `features` after its indices 4, 9, 16, 23 and 30.
    paths = [classifier.layers[f"block{i}_pool"].path for i in range(1, 6)]
    assert paths == [f"backbone.network.features.{end - 1}" for end in (5, 10, 17, 24, 31)]


def test_any_block_of_any_image_in_rows_and_columns(composed: Compose, tmp_path: Path) -> None:
    images_below(tmp_path / "mine", 1)
    cfg = composed(
        "model=vgg16", "model.weights=null", "data.image_size=64", f"images=[{tmp_path}/mine/0.png]",
        "visuals=activations", "visuals.activations.layers=[block2_pool]", "visuals.activations.grid=[3,10]",
        config="visualize",
    )  # fmt: skip
    assert visualize(cfg, tmp_path / "out") == ["activations/block2_pool"]
    for wrong in ("[0,3]", "[3]"):
        cfg = composed("visuals=activations", f"visuals.activations.grid={wrong}", config="visualize")
        cfg["model"]["weights"] = None
        with pytest.raises(UserError, match="must be a list of 2 integers of at least 1 or null"):
            visualize(cfg, tmp_path / "out")
