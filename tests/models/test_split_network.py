"""Trunk and tail compute the bits of the whole network; a network that cannot be split exactly is not split."""

import pytest
import torch

from filterscope.errors import UserError
from filterscope.models import heads
from filterscope.models.backbone import small_cnn_backbone, torchvision_backbone
from filterscope.models.classifier import Classifier
from filterscope.models.layers import block_ends
from filterscope.models.split_network import split_at


def classifier(name: str, size: int) -> Classifier:
    torch.manual_seed(0)
    if name == "small_cnn":
        network = heads.replace(small_cnn_backbone(in_channels=3), num_classes=5)
    else:
        network = heads.linear(torchvision_backbone(name=name, weights=None), num_classes=5)
    network.image_size = size
    return network.eval()


@pytest.mark.parametrize(("name", "size"), [("small_cnn", 28), ("alexnet", 64), ("vgg11_bn", 32), ("resnet18", 32)])
def test_trunk_and_tail_compute_the_bits_of_the_whole_network(name: str, size: int) -> None:
    network = classifier(name, size)
    images = torch.rand(3, 3, size, size)
    for layer in (*block_ends(network.layers)[:-1], None):
        halves = split_at(network, layer)
        assert halves is not None
        assert torch.equal(halves.logits(halves.features(images)), network(images))


def test_splitting_leaves_the_network_unchanged() -> None:
    network = classifier("alexnet", 64)
    images = torch.rand(2, 3, 64, 64)
    before = network(images)
    split_at(network, "block2_pool")
    assert torch.equal(network(images), before)
    assert not any(module._forward_hooks for module in network.modules())


def test_no_split_where_a_connection_skips_the_layer() -> None:
    network = classifier("resnet18", 32)
    assert split_at(network, "layer2.0.conv1") is None


def test_hooks_are_noticed_in_the_trunk_but_not_in_the_tail() -> None:
    halves = split_at(network := classifier("alexnet", 64), "block2_pool")
    assert halves is not None
    network.module_of("block3_conv1").register_forward_hook(lambda *_: None)
    assert not halves.watched
    network.module_of("block1_conv1").register_forward_hook(lambda *_: None)
    assert halves.watched


def test_an_unknown_layer_is_a_user_error() -> None:
    with pytest.raises(UserError, match="unknown layer"):
        split_at(classifier("alexnet", 64), "block9_pool")
