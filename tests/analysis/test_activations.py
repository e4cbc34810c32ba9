import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import alexnet

from filterscope.analysis.activations import activations
from filterscope.errors import UserError
from filterscope.models.backbone import Backbone
from filterscope.models.classifier import Classifier

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@pytest.fixture
def classifier() -> Classifier:
    torch.manual_seed(0)
    network = alexnet(weights=None)
    network.classifier = nn.Flatten()
    backbone = Backbone(network, name="alexnet", mean=MEAN, std=STD)
    return Classifier(backbone, nn.Linear(256 * 36, 3), num_classes=3)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 67, 67, generator=torch.Generator().manual_seed(0))


def normalised(images: Tensor) -> Tensor:
    return (images - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def test_tapped_convolution_keeps_negative_values(classifier: Classifier, images: Tensor) -> None:
    conv = classifier.module_of("block1_conv1")
    maps = activations(classifier, images, ["block1_conv1"])["block1_conv1"]
    expected = F.conv2d(normalised(images), conv.weight, conv.bias, stride=4, padding=2)
    torch.testing.assert_close(maps, expected.detach())
    assert maps.min() < 0


def test_a_block_ends_with_the_pooled_rectified_convolution(classifier: Classifier, images: Tensor) -> None:
    maps = activations(classifier, images, ["block1_conv1", "block1_relu1", "block1_pool", "block2_conv1"])
    torch.testing.assert_close(maps["block1_relu1"], maps["block1_conv1"].clamp_min(0))
    torch.testing.assert_close(maps["block1_pool"], F.max_pool2d(maps["block1_relu1"], 3, 2))
    conv = classifier.module_of("block2_conv1")
    expected = F.conv2d(maps["block1_pool"], conv.weight, conv.bias, padding=2)
    torch.testing.assert_close(maps["block2_conv1"], expected.detach(), rtol=1e-4, atol=1e-5)


def test_all_names_of_a_layer_give_the_same_maps(classifier: Classifier, images: Tensor) -> None:
    maps = activations(classifier, images, ["block2_conv1", "conv_2", "features.3"])
    assert torch.equal(maps["conv_2"], maps["block2_conv1"])
    assert torch.equal(maps["features.3"], maps["block2_conv1"])


def test_functional_in_place_operations_cannot_change_recorded_outputs(images: Tensor) -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu_(self.conv(x)).mean((2, 3))

    backbone = Backbone(InPlace(), name="in_place", mean=[0.0] * 3, std=[1.0] * 3)
    classifier = Classifier(backbone, nn.Linear(4, 2), num_classes=2)
    conv = classifier.module_of("conv")
    maps = activations(classifier, images, ["conv"])["conv"]
    torch.testing.assert_close(maps, F.conv2d(images, conv.weight, conv.bias).detach())


def test_the_head_outputs_the_logits_without_dropout(classifier: Classifier, images: Tensor) -> None:
    classifier.train()
    logits = activations(classifier, images, ["head"])["head"]
    torch.testing.assert_close(logits, classifier.eval()(images).detach())


def test_the_error_for_an_unknown_layer_names_existing_ones(classifier: Classifier, images: Tensor) -> None:
    with pytest.raises(UserError, match="block1_conv1, block1_relu1"):
        activations(classifier, images, ["conv_9"])
