"""Every classifier of torchvision accepts every head; built without values, so that the tests are cheap."""

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import get_model_weights, list_models

from filterscope.config.instantiate import instantiate
from filterscope.errors import UserError
from filterscope.models import heads
from filterscope.models.backbone import Backbone, torchvision_backbone
from filterscope.models.classifier import Classifier
from filterscope.models.forward_trace import calls_without_values
from filterscope.models.layers import block_ends, convolutions
from filterscope.models.weights import on_meta_device

NETWORKS = list_models(module=torchvision.models)
# Those that classify with more than one Linear, or with none.
POOLED_ANEW = {
    **dict.fromkeys([name for name in NETWORKS if name.startswith("vgg")], 512),
    "alexnet": 256,
    "squeezenet1_0": 512,
    "squeezenet1_1": 512,
    "mobilenet_v3_small": 576,
    "mobilenet_v3_large": 960,
    "maxvit_t": 512,
}


def backbone_of(name: str) -> Backbone:
    with on_meta_device():
        return torchvision_backbone(name=name, weights=None)


def output_of(classifier: Classifier) -> tuple[int, ...]:
    return shapes_of(classifier)[""]


def shapes_of(classifier: Classifier) -> dict[str, tuple[int, ...]]:
    calls = calls_without_values(classifier, in_channels=3, image_size=classifier.backbone.image_size)
    assert calls is not None
    return {call.path: call.shape for call in calls}


def test_all_networks_are_tested():
    assert len(NETWORKS) >= 80


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_accepts_replace_append_and_keep(name):
    backbone = backbone_of(name)
    assert not [m for m in backbone.modules() if getattr(m, "inplace", False) is True]
    appended = heads.append(backbone, num_classes=7)
    assert appended.head.weight.shape == (7, 1000)
    kept = heads.keep(backbone, num_classes=1000)
    shapes = shapes_of(kept)
    assert shapes[""] == (1000,)

    replaced = heads.replace(backbone_of(name), num_classes=7)
    assert replaced.head.out_features == 7
    if not name.startswith("squeezenet"):  # its last layer is a convolution
        assert shapes["backbone"] == (replaced.head.in_features,)


@pytest.mark.parametrize(("name", "width"), POOLED_ANEW.items())
def test_linear_finds_the_width_of_the_pooled_features(name, width):
    classifier = heads.linear(backbone_of(name), num_classes=7)
    assert classifier.head.in_features == width
    assert classifier.head_path is None
    assert output_of(classifier) == (7,)


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "googlenet", "convnext_tiny", "vit_b_16", "swin_t"])
def test_linear_replaces_the_only_linear(name):
    classifier = heads.linear(backbone_of(name), num_classes=7)
    assert classifier.head_path is not None
    assert output_of(classifier) == (7,)


def test_linear_on_squeezenet_uses_the_mean_of_its_features():
    classifier = heads.linear(torchvision_backbone(name="squeezenet1_1", weights=None), num_classes=3).eval()
    images = torch.rand(2, 3, 64, 64)
    backbone = classifier.backbone
    with torch.no_grad():
        features = backbone.network.features((images - backbone.mean) / backbone.std)
        torch.testing.assert_close(backbone(images), features.mean(dim=(2, 3)))


def test_linear_on_alexnet_pools_the_features_globally_not_to_six_by_six():
    classifier = heads.linear(torchvision_backbone(name="alexnet", weights=None), num_classes=3).eval()
    images = torch.rand(2, 3, 260, 260)  # features of 7×7, which AlexNet's own pooling would not divide evenly
    backbone = classifier.backbone
    with torch.no_grad():
        features = backbone.network.features((images - backbone.mean) / backbone.std)
        torch.testing.assert_close(backbone(images), features.mean(dim=(2, 3)))


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_classifiers_are_off(name):
    network = backbone_of(name).network
    assert not network.aux_logits
    assert not [path for path, _ in network.named_modules() if "aux" in path.lower()]


@pytest.mark.parametrize("name", ["alexnet", "inception_v3", "vit_h_14"])
def test_statistics_and_size_are_those_of_the_registry(name):
    preset = get_model_weights(name).DEFAULT.transforms()
    backbone = backbone_of(name)
    torch.testing.assert_close(backbone.mean.flatten(), torch.tensor(preset.mean))
    torch.testing.assert_close(backbone.std.flatten(), torch.tensor(preset.std))
    assert backbone.image_size == preset.crop_size[0]


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("resnet18", ["layer1", "layer2", "layer3", "layer4"]),
        ("regnet_x_400mf", [f"trunk_output.block{i}" for i in (1, 2, 3, 4)]),
        ("squeezenet1_1", [f"features.{i}" for i in (3, 4, 6, 7, 9, 10, 11, 12)]),
        ("maxvit_t", [f"blocks.{i}" for i in range(4)]),
        ("vit_b_16", ["conv_proj"]),
        ("swin_t", ["features.0.0"]),
    ],
)
def test_blocks_of_other_networks_are_their_stages(name, ends):
    layers = heads.keep(backbone_of(name)).layers
    assert block_ends(layers) == ends
    assert all(layers[end].num_channels for end in ends)


def test_layers_of_other_networks_have_path_and_counted_names():
    classifier = heads.replace(backbone_of("resnet18"), num_classes=7)
    assert isinstance(classifier.module_of("layer2.0.conv1"), nn.Conv2d)
    assert classifier.module_of("conv_1") is classifier.backbone.network.conv1
    assert classifier.module_of("fc") is classifier.head
    assert len(convolutions(classifier.layers)) == 20
    assert classifier.layers["layer3"].num_channels == 256


def test_an_unknown_network_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"unknown network 'alexnot' \(did you mean alexnet\?\).*wide_resnet50_2"):
        torchvision_backbone(name="alexnot", weights=None)


def test_the_error_for_grey_images_names_a_network_that_accepts_them():
    with pytest.raises(UserError, match="alexnet takes images of 3 channels, not 1; model=small_cnn"):
        torchvision_backbone(name="alexnet", weights=None, in_channels=1)


def test_dropout_is_set_everywhere_or_refused():
    with on_meta_device():
        backbone = torchvision_backbone(name="alexnet", weights=None, dropout=0.1)
        assert [m.p for m in backbone.modules() if isinstance(m, nn.Dropout)] == [0.1, 0.1]
        with pytest.raises(UserError, match="resnet18 has no dropout"):
            torchvision_backbone(name="resnet18", weights=None, dropout=0.1)
        target = "filterscope.models.backbone.torchvision_backbone"
        with pytest.raises(UserError, match=r"model.dropout=1.5"):
            instantiate({"_target_": target, "name": "alexnet", "weights": None, "dropout": 1.5}, where="model")


@pytest.mark.parametrize("option", [{"mean": [0.5]}, {"std": [0.1, 0.0, 0.1]}])
def test_statistics_must_be_one_number_per_channel(option):
    with on_meta_device(), pytest.raises(UserError, match=r"must be 3 .*numbers, one per channel"):
        torchvision_backbone(name="alexnet", weights=None, **option)
