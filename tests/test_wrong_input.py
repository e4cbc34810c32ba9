"""What a user can get wrong: each ends in a `UserError`, which the scripts tell in one line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from train import train
from visualize import visualize

from filterscope.edge import check_paths
from filterscope.errors import UserError
from tiny import TINY

Compose = Callable[..., dict[str, Any]]


def tiny(*overrides: str) -> list[str]:
    """Return the tiny run's overrides, less those that are given otherwise."""
    given = {override.split("=")[0] for override in overrides}
    kept = [override for override in TINY if override.split("=")[0] not in given]
    if "data" in given:
        kept = [override for override in kept if not override.startswith("data.num")]
    if "model" in given:
        kept = [override for override in kept if not override.startswith("model.")]
    return [*kept, *overrides]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("+optimizer.rl=1",), r"optimizer has no knob 'rl'; it has .*lr"),
        (("data=folder", "data.root=nowhere"), "nowhere"),
        (("data.batch_size=many",), r"data\.batch_size='many': .*integer"),
        (("data.batch_size=0",), r"data\.batch_size=0: must be at least 1"),
        (("data.exclude=[tulip]",), "tulip"),
        (("data.image_size=16", "model=alexnet_scratch"), r"16×16.*alexnet.*63"),
        (("model.in_channels=2",), r"num_channels=2: images have 1 or 3 channels"),
        (("model=torchvision", "model.name=alexnett", "model.weights=null"), "alexnett.*alexnet"),
        (("trainer.accelerator=gpu",), r"trainer\.accelerator=gpu.*gpu"),
        (("trainer.accelerator=abacus",), r"trainer\.accelerator=abacus"),
        (("trainer.precision=3",), r"trainer\.precision=3"),
        (("trainer.max_epochs=-3",), "max_epochs"),
        (("visuals.filters.layers=[block7_conv1]",), r"unknown layer 'block7_conv1'.*block1_conv1"),
        (("visuals.filters.channels=[99]",), "channel 99.*0 to 9"),
        (("visuals.activations.layers=[relu]",), "unknown layer 'relu'"),
        (("head=keep", "model.num_classes=7"), "head=keep.*7.*10"),
        (("checkpoint.monitor=val/f1",), "val/f1.*val/acc"),
        (("recipe.objective=beauty",), "beauty.*channel"),
        (("export=onnx",), "export='onnx'.*state_dict"),
        (("finetune.release_epoch=2", "finetune=full"), "release_epoch"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_input_to_train(overrides: tuple[str, ...], message: str, composed: Compose, tmp_path: Path) -> None:
    from hydra.errors import ConfigCompositionException

    with pytest.raises((UserError, ConfigCompositionException), match=message) as caught:
        train(composed(*tiny(*overrides)), tmp_path)
    assert isinstance(caught.value, ConfigCompositionException) or "\n" not in str(caught.value)


def test_training_without_data_is_refused(composed: Compose, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no data to train on"):
        train(composed("data=none", "visuals=none"), tmp_path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("ckpt=nowhere",), "no checkpoint at nowhere"),
        (("model=small_cnn", "data.image_size=28", "visuals=activations"), "need images"),
        (("model=small_cnn", "model.weights=imagenet"), "no published weights"),
        (("model=alexnet", "model.weights=null", "data.image_size=20", "visuals=filters"), r"20×20.*63"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_input_to_visualize(overrides: tuple[str, ...], message: str, composed: Compose, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        visualize(composed(*overrides, config="visualize"), tmp_path)


def test_a_missing_image_is_named() -> None:
    with pytest.raises(UserError, match=r"no image at nowhere\.jpg"):
        check_paths({"images": ["nowhere.jpg"]})


def test_a_file_that_is_no_image_is_named(composed: Compose, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("not an image")
    cfg = composed(
        "model=small_cnn", "data.image_size=28", "visuals=activations", f"images=[{tmp_path}/text.jpg]",
        config="visualize",
    )  # fmt: skip
    with pytest.raises(UserError, match=r"text\.jpg cannot be read as an image"):
        visualize(cfg, tmp_path / "out")


def test_weights_of_another_network_are_named(composed: Compose, tmp_path: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "vgg.pth")
    cfg = composed(*tiny("model=alexnet", f"model.weights={tmp_path}/vgg.pth", "data.image_size=64", "head=linear"))
    with pytest.raises(UserError, match=r"vgg\.pth.*alexnet.*features\.0\.weight"):
        train(cfg, tmp_path / "out")
