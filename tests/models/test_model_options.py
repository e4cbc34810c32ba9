"""Every option of the groups `model` and `head` composes and builds."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from filterscope.models.weights import on_meta_device

CONF = Path(__file__).parent.parent.parent / "conf"
MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
HEADS = sorted(path.stem for path in (CONF / "head").glob("*.yaml"))


def built(model: str, head: str, *overrides: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(
            overrides=[f"+model={model}", f"+head={head}", "+data.image_size=28", "model.weights=null", *overrides]
        )
    OmegaConf.resolve(cfg)
    with on_meta_device():
        backbone = instantiate(cfg.model, _convert_="all")
        return instantiate(cfg.head, _convert_="all")(backbone, num_classes=backbone.num_classes)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("head", HEADS)
def test_every_model_accepts_every_head(model, head):
    classifier = built(model, head, *(["model.name=resnet34"] if model in ("torchvision", "timm") else []))
    assert classifier.num_classes == (10 if model == "small_cnn" else 1000)
    expected = {"torchvision": "resnet34", "timm": "resnet34", "alexnet_scratch": "alexnet"}.get(model, model)
    assert classifier.backbone.name == expected


def test_the_groups_have_their_documented_options():
    assert {"alexnet", "vgg16", "vgg16_bn", "small_cnn", "resnet18", "torchvision"} <= set(MODELS)
    assert set(HEADS) == {"replace", "append", "linear", "keep"}


def test_statistics_can_be_given_as_lists():
    classifier = built("alexnet", "replace", "model.mean=[0.5,0.5,0.5]", "model.std=[0.25,0.25,0.25]")
    assert torch.equal(classifier.backbone.mean.flatten(), torch.full((3,), 0.5))
