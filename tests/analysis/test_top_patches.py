"""Top-activating patches are cut where the planted patterns are."""

import pytest
import torch

from filterscope.analysis.top_patches import measure_responses, receptive_field, top_patches
from filterscope.errors import UserError
from filterscope.models import heads
from filterscope.models.backbone import small_cnn_backbone, torchvision_backbone


@pytest.mark.parametrize(("layer", "side"), [("block1_conv1", 11), ("block2_conv1", 51), ("block3_conv1", 99)])
def test_receptive_fields_of_alexnet_are_the_published_ones(layer, side):
    alexnet = heads.linear(torchvision_backbone(name="alexnet", weights=None), num_classes=2)
    assert receptive_field(alexnet, layer, 224).side == side


def test_the_top_patch_of_a_channel_is_where_its_pattern_is():
    torch.manual_seed(0)
    network = heads.replace(small_cnn_backbone(in_channels=1, image_size=32), num_classes=2)
    weight = network.backbone.network.conv1.weight.data
    weight[3] = torch.tensor([[[-1.0, 2, -1], [-1, 2, -1], [-1, 2, -1]]])
    images = 0.1 * torch.rand(5, 1, 32, 32)
    images[4, 0, 10:13, 21] = 1.0
    patches = top_patches(network, images, "block1_conv1", [3], count=2)
    assert patches.shape == (1, 2, 1, 3, 3)
    assert torch.equal(patches[0, 0], images[4, :, 10:13, 20:23])
    largest = measure_responses(network, images, ["block1_conv1"])["block1_conv1"].largest[:, 3]
    assert largest.argmax() == 4


def test_the_patch_of_a_linear_is_the_whole_image():
    network = heads.replace(small_cnn_backbone(in_channels=1, image_size=32), num_classes=2)
    assert top_patches(network, torch.rand(3, 1, 32, 32), "head", [0, 1], count=3).shape == (2, 3, 1, 32, 32)


def test_top_patches_need_images():
    network = heads.replace(small_cnn_backbone(in_channels=1, image_size=32), num_classes=2)
    with pytest.raises(UserError, match="at least one image"):
        top_patches(network, torch.rand(0, 1, 32, 32), "head", [0])
