"""The layer summary counts all layers and parameters."""

import pytest
import torchvision

from filterscope.errors import UserError
from filterscope.models import heads
from filterscope.models.backbone import torchvision_backbone
from filterscope.models.classifier import layer_rows
from filterscope.models.weights import on_meta_device


def classifier_of(name: str, head: str = "keep", num_classes: int = 1000):
    with on_meta_device():
        return getattr(heads, head)(torchvision_backbone(name=name, weights=None), num_classes=num_classes)


def test_vgg16_has_14_714_688_convolutional_parameters_and_138_million_in_all():
    rows = layer_rows(classifier_of("vgg16"), image_size=96)
    assert sum(row.parameters for row in rows if row.kind == "conv") == 14_714_688
    assert sum(row.parameters for row in rows) == torchvision.models.VGG16_Weights.DEFAULT.meta["num_params"]
    shapes = {row.layer: row.shape for row in rows}
    # The table that the notebook's framework prints for 96×96, without its leading None.
    assert shapes["block1_conv1"] == (64, 96, 96)
    assert [shapes[f"block{i}_pool"] for i in range(1, 6)] == [
        (64, 48, 48),
        (128, 24, 24),
        (256, 12, 12),
        (512, 6, 6),
        (512, 3, 3),
    ]
    parameters = {row.layer: row.parameters for row in rows}
    assert parameters["block1_conv1"] == 1792
    assert parameters["block5_conv3"] == 2_359_808
    assert parameters["block1_pool"] == 0


@pytest.mark.parametrize("name", ["alexnet", "vgg11_bn", "resnet18", "squeezenet1_1", "googlenet", "convnext_tiny"])
def test_the_rows_add_up_to_the_published_number(name):
    rows = layer_rows(classifier_of(name), image_size=224)
    published = torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"]
    assert sum(row.parameters for row in rows) == published


def test_the_last_row_is_the_head():
    rows = layer_rows(classifier_of("vgg16", "linear", 10), image_size=64)
    assert rows[-1] == ("head", "linear", (10,), 512 * 10 + 10)


def test_too_small_images_are_refused():
    with pytest.raises(UserError, match="the smallest it takes is 32"):
        layer_rows(classifier_of("vgg16"), image_size=16)
