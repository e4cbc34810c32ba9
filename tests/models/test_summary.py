"""The layer summary counts all layers and parameters."""

import pytest
import torchvision

from filterscope.errors import UserError
from filterscope.models import heads
from filterscope.models.backbone import torchvision_backbone
from filterscope.models.classifier import summarize
from filterscope.models.weights import on_meta_device


def classifier_of(name: str, head: str = "keep", num_classes: int = 1000):
    with on_meta_device():
        return getattr(heads, head)(torchvision_backbone(name=name, weights=None), num_classes=num_classes)


def test_vgg16_has_14_714_688_convolutional_parameters_and_138_million_in_all():
    summary = summarize(classifier_of("vgg16"), image_size=96)
    assert summary.convolutional == 14_714_688
    assert summary.parameters == torchvision.models.VGG16_Weights.DEFAULT.meta["num_params"]
    shapes = {row.layer: row.shape for row in summary.rows}
    # The table that the notebook's framework prints for 96×96, without its leading None.
    assert shapes["block1_conv1"] == (64, 96, 96)
    assert [shapes[f"block{i}_pool"] for i in range(1, 6)] == [
        (64, 48, 48),
        (128, 24, 24),
        (256, 12, 12),
        (512, 6, 6),
        (512, 3, 3),
    ]
    parameters = {row.layer: row.parameters for row in summary.rows}
    assert parameters["block1_conv1"] == 1792
    assert parameters["block5_conv3"] == 2_359_808
    assert parameters["block1_pool"] == 0


@pytest.mark.parametrize("name", ["alexnet", "vgg11_bn", "resnet18", "squeezenet1_1", "googlenet", "convnext_tiny"])
def test_the_rows_add_up_to_the_published_number(name):
    summary = summarize(classifier_of(name), image_size=224)
    published = torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"]
    assert sum(row.parameters for row in summary.rows) == summary.parameters == published


def test_a_frozen_network_trains_its_head_only():
    classifier = classifier_of("vgg16", "linear", 10)
    classifier.backbone.requires_grad_(requires_grad=False)
    summary = summarize(classifier, image_size=64)
    assert summary.trained == 512 * 10 + 10
    assert summary.parameters == 14_714_688 + summary.trained
    assert summary.rows[-1].layer == "head"
    assert summary.rows[-1].shape == (10,)


def test_too_small_images_are_refused():
    with pytest.raises(UserError, match="the smallest it takes is 32"):
        summarize(classifier_of("vgg16"), image_size=16)
