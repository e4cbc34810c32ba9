"""Networks of timm carry every head, keep timm's own classifier and statistics, and need timm only when built."""

import logging
import subprocess
import sys

import pytest
import torch
from train import train

from filterscope.errors import UserError
from filterscope.models import heads
from filterscope.models.backbone import torchvision_backbone
from filterscope.models.layers import block_ends, last_layer
from filterscope.models.timm import timm_backbone
from filterscope.models.weights import on_meta_device
from filterscope.registry import find, is_registered
from filterscope.training.policies import LastBlocks

timm = pytest.importorskip("timm")


def backbone(**options: object):
    return timm_backbone(name="resnet18", weights=None, **options)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_kept_network_is_timm_s_own_on_normalised_images(images: torch.Tensor) -> None:
    classifier = heads.keep(backbone(num_classes=5)).eval()
    network = timm.create_model("resnet18", num_classes=5).eval()
    network.load_state_dict(classifier.export_state_dict())
    mean, std = (torch.tensor(network.pretrained_cfg[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    assert torch.allclose(classifier(images), network((images - mean) / std), atol=1e-4)


@pytest.mark.parametrize("head", ["replace", "linear", "append", "keep"])
def test_every_head_outputs_the_classes(head: str, images: torch.Tensor) -> None:
    classifier = getattr(heads, head)(backbone(num_classes=7), num_classes=7).eval()
    assert classifier(images).shape == (2, 7)
    assert classifier.head.in_features == (7 if head == "append" else 512)


@pytest.mark.parametrize("name", ["convnext_atto", "vgg11", "mobilenetv3_small_050", "efficientnet_b0"])
def test_the_classifier_is_the_layer_that_timm_names(name: str) -> None:
    network = timm_backbone(name=name, weights=None, num_classes=3).network
    assert last_layer(network)[1] is network.get_classifier()
    classifier = heads.linear(timm_backbone(name=name, weights=None), num_classes=3).eval()
    assert classifier(torch.rand(1, 3, 224, 224)).shape == (1, 3)


def test_policies_find_the_blocks() -> None:
    classifier = heads.replace(backbone(), num_classes=3)
    assert block_ends(classifier.layers) == ["layer1", "layer2", "layer3", "layer4"]
    LastBlocks(blocks=1).freeze(classifier)
    trained = {name.split(".")[2] for name, p in classifier.named_parameters() if p.requires_grad and "network" in name}
    assert trained == {"layer4"}


def test_grey_images_get_the_average_statistics() -> None:
    grey = backbone(in_channels=1)
    assert grey.in_channels == 1
    assert grey.mean.item() == pytest.approx(sum((0.485, 0.456, 0.406)) / 3)


def test_unknown_names_end_in_one_line() -> None:
    with pytest.raises(UserError, match=r"unknown network 'convnext_smal' \(did you mean convnext_small\?\); timm"):
        timm_backbone(name="convnext_smal", weights=None)
    with pytest.raises(UserError, match=r"model.drop_path=0.1: vgg11 has no branches to skip"):
        timm_backbone(name="vgg11", weights=None, drop_path=0.1)


def test_transformers_are_built_for_the_size_of_the_images() -> None:
    classifier = heads.replace(timm_backbone(name="vit_tiny_patch16_224", weights=None, image_size=48), num_classes=3)
    assert classifier.accepts(48)
    assert not classifier.accepts(224)
    assert classifier.backbone.image_size == 48
    assert timm_backbone(name="resnet18", weights=None, image_size=48).image_size == 224  # the size it was trained at


@pytest.mark.parametrize("build", [timm_backbone, torchvision_backbone])
def test_later_branches_are_skipped_more_often(build) -> None:
    name = {timm_backbone: "convnext_atto", torchvision_backbone: "convnext_tiny"}[build]
    with on_meta_device():
        network = build(name=name, weights=None, drop_path=0.3).network
    kinds = {"DropPath": "drop_prob", "StochasticDepth": "p"}
    shares = [getattr(m, kinds[type(m).__name__]) for m in network.modules() if type(m).__name__ in kinds]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(0.3)
    assert 0 < shares[0] < 0.05


def test_it_is_registered_and_timm_is_imported_only_when_a_network_is_built() -> None:
    assert find("model", "timm") is timm_backbone
    assert is_registered("filterscope.models.timm.timm_backbone", ["model"])
    code = "import sys, filterscope.models.timm; raise SystemExit('timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_timm_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r'model=timm needs timm: pip install "filterscope\[timm\]"'):
        backbone()


def test_a_vision_transformer_leaves_out_what_needs_another_image_size_and_draws_the_rest(composed, tmp_path, caplog):
    options = (
        "model=timm", "model.name=vit_tiny_patch16_224", "model.weights=null", "data.image_size=224",
        "finetune=last_blocks", "visuals=[filters,activations,synthesis]", "trainer.max_epochs=1",
        "trainer.limit_train_batches=1",
        "data.batch_size=4", "data.num_train=12", "data.num_val=10", "data.num_test=10", "trainer.limit_val_batches=1",
        "trainer.limit_test_batches=1", "trainer.precision=32-true", "trainer.enable_progress_bar=false",
    )  # fmt: skip
    with caplog.at_level(logging.WARNING, "filterscope"):
        train(composed(*options), tmp_path)
    said = "visuals.synthesis is not drawn: vit_tiny_patch16_224 takes images of 224×224 pixels only"
    assert f"{said}; choose recipe.size=224 recipe.crop=null" in caplog.messages
    assert {path.name for path in (tmp_path / "pictures").iterdir()} >= {"filters", "activations"}
    assert not (tmp_path / "pictures" / "synthesis").exists()
