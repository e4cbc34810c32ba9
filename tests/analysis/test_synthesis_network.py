import copy

import pytest
import torch
from torch import nn

from filterscope.analysis.hooks import observing, tapping
from filterscope.analysis.synthesis import LayerStatistics, objective
from filterscope.analysis.synthesis.network import SpaceToDepthConv, TruncatedNetwork, frozen_copy
from filterscope.models import heads
from filterscope.models.backbone import Backbone, small_cnn_backbone, torchvision_backbone
from filterscope.models.classifier import Classifier


def network(*modules):
    return Classifier(
        Backbone(nn.Sequential(*modules), name="tiny", mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.25]),
        nn.Identity(),
        num_classes=1,
    )


def expect_same(output, expected, images):
    """Hold values and data gradients together, in single precision, to 1e-5 of the largest."""
    assert torch.allclose(output, expected, atol=1e-5 * float(expected.detach().abs().max()))
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad((output * weights).sum(), images)
    (wanted,) = torch.autograd.grad((expected * weights).sum(), images)
    assert torch.allclose(gradient, wanted, atol=1e-5 * float(wanted.abs().max()))


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    resnet = heads.replace(torchvision_backbone(name="resnet18", weights=None), num_classes=4)
    for module in resnet.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 2.0)
    networks = {
        "alexnet": heads.linear(torchvision_backbone(name="alexnet", weights=None), num_classes=4),
        "vgg11_bn": heads.linear(torchvision_backbone(name="vgg11_bn", weights=None), num_classes=4),
        "resnet18": resnet,
        "grey": heads.replace(small_cnn_backbone(in_channels=1, image_size=64), num_classes=4),
    }
    for classifier in networks.values():
        assert classifier.layers  # named before the precision changes
        classifier.double()
    return networks


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("alexnet", "block1_conv1"), ("alexnet", "block2_conv1"), ("alexnet", "block3_conv3"),
        ("alexnet", "block3_relu2"), ("alexnet", "block1_pool"), ("alexnet", "head"),
        ("vgg11_bn", "block2_conv1"), ("vgg11_bn", "block2_norm1"),
        ("resnet18", "conv1"), ("resnet18", "layer2.0.conv2"), ("resnet18", "layer2.0.relu"), ("resnet18", "layer2"),
        ("grey", "block2_conv1"), ("grey", "fc1"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["channel", "specific"])
def test_image_gradients_equal_autograd_of_the_whole_network(networks, name, layer, kind):
    """In double precision: in single, values within a rounding of 0 fall on different sides of the ReLUs."""
    classifier = networks[name]
    images = torch.rand(3, classifier.in_channels, 64, 64, dtype=torch.double, requires_grad=True)
    channels = (3, 0, 2)
    with observing(classifier), tapping(classifier, [layer]) as outputs:
        classifier(images)
        whole = {layer: outputs[layer]}
    known = LayerStatistics.of_responses(torch.rand(9, whole[layer].shape[1]))
    short = TruncatedNetwork(classifier, [layer], size=64)(images)
    for slope in (0.05, 0.0):
        expected_score, score = (
            objective(kind)(outputs, layer, channels, slope=slope, measure=lambda _layer: known)
            for outputs in (whole, short)
        )
        (expected,) = torch.autograd.grad(expected_score.sum(), images, retain_graph=True)
        (gradient,) = torch.autograd.grad(score.sum(), images, retain_graph=True)
        assert torch.allclose(score, expected_score, rtol=1e-9, atol=1e-12)
        assert torch.allclose(gradient, expected, rtol=1e-8, atol=1e-10 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "side"), [(11, 4, 2, 63), (7, 2, 3, 30), (2, 2, 0, 17), (5, 3, 1, 20), (4, 4, 0, 4)]
)
@pytest.mark.parametrize(("count", "channels"), [(2, 3), (1, 1)])
def test_space_to_depth_computes_the_same_convolution(kernel, stride, padding, side, count, channels):
    conv = nn.Conv2d(channels, 5, kernel, stride=stride, padding=padding)
    images = torch.rand(count, channels, side, side, requires_grad=True)
    expect_same(SpaceToDepthConv(conv)(images), conv(images), images)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(3, 6, 3, stride=2, groups=3),
        nn.Conv2d(3, 8, 3, stride=2, dilation=2),
        nn.Conv2d(3, 8, 3, padding="same"),
        nn.Conv2d(3, 8, 3, stride=2, padding=1, padding_mode="reflect"),
        nn.Conv2d(3, 8, (3, 2), stride=2),
        nn.Conv2d(3, 8, 1, stride=2, padding=1),
        nn.Conv2d(3, 8, 3, stride=2, padding=(0, 1)),
    ],
)
def test_a_convolution_that_space_to_depth_does_not_fit_is_left_as_it_is(conv):
    classifier = network(conv, nn.ReLU())
    images = torch.rand(2, 3, 12, 12)
    truncated = TruncatedNetwork(classifier, ["block1_conv1"], size=12)
    with torch.no_grad():
        output = truncated(images)["block1_conv1"]
    assert not any(isinstance(module, SpaceToDepthConv) for module in truncated.network.modules())
    assert torch.allclose(output, conv((images - classifier.backbone.mean) / classifier.backbone.std), atol=1e-6)


@pytest.mark.parametrize("used", [True, False])
def test_space_to_depth_can_be_switched_off(used):
    classifier = network(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU())
    truncated = TruncatedNetwork(classifier, ["block1_conv1"], size=12, space_to_depth=used)
    assert any(isinstance(module, SpaceToDepthConv) for module in truncated.network.modules()) is used


def test_gradients_of_a_chain_of_convolutions_are_those_of_the_network():
    """In single precision, with a smooth activation: at a ReLU's kink rounding decides."""
    torch.manual_seed(0)
    trunk = network(
        *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.SiLU(), nn.Conv2d(64, 192, 5, padding=2), nn.SiLU()),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.SiLU(), nn.Conv2d(384, 256, 3, padding=1)),
    )
    images = torch.rand(3, 3, 64, 64, requires_grad=True)
    last = [name for name in trunk.layers if "conv" in name][-1]
    expect_same(TruncatedNetwork(trunk, [last], size=64)(images)[last], trunk.backbone(images), images)


def test_nothing_behind_the_layer_is_computed():
    behind = nn.Conv2d(4, 4, 3)
    truncated = TruncatedNetwork(network(nn.Conv2d(3, 4, 3), nn.ReLU(), behind), ["block1_conv1"], size=12)
    ran = []
    truncated.network.backbone.network[2].register_forward_hook(lambda *_: ran.append(True))
    truncated(torch.rand(1, 3, 12, 12))
    assert not ran


def test_a_frozen_copy_shares_the_weights_and_nothing_else():
    classifier = network(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    classifier.train().backbone.network[0].register_forward_hook(lambda *_: pytest.fail("the copy has a hook"))
    before = copy.deepcopy(classifier.state_dict())
    other = frozen_copy(classifier)
    other(torch.rand(2, 3, 8, 8))
    own, shared = classifier.backbone.network[0].weight, other.backbone.network[0].weight
    assert shared.data_ptr() == own.data_ptr()
    assert own.requires_grad
    assert not shared.requires_grad
    assert all(module.training for module in classifier.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in classifier.state_dict().items())
