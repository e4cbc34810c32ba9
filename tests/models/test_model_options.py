"""Every option of the groups `model` and `head` composes and builds."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from filterscope.errors import UserError
from filterscope.models.weights import on_meta_device

CONF = Path(__file__).parent.parent.parent / "conf"
MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml") if path.stem != "callable")
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


@pytest.mark.parametrize(("model", "width", "parameters"), [("alexnet", 256, 2_472_266), ("vgg16_bn", 512, 14728266)])
def test_without_fully_connected_layers_one_linear_on_pooled_features_is_left(model, width, parameters):
    classifier = built(model, "replace", "model.fully_connected=false", "model.num_classes=10")
    assert classifier.head.in_features == width
    assert sum(parameter.numel() for parameter in classifier.parameters()) == parameters
    with pytest.raises(UserError, match="no place for this head"):
        classifier.check_exportable()


def test_a_network_without_fully_connected_layers_says_so():
    with pytest.raises(InstantiationException, match="resnet18 has no fully connected layers"):
        built("resnet18", "replace", "model.fully_connected=false")


def test_statistics_can_be_given_as_lists():
    classifier = built("alexnet", "replace", "model.mean=[0.5,0.5,0.5]", "model.std=[0.25,0.25,0.25]")
    assert torch.equal(classifier.backbone.mean.flatten(), torch.full((3,), 0.5))
