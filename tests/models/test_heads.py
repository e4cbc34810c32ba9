"""Heads give a published network the data's classes and leave its other computations unchanged."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models import get_model_weights

from filterscope.errors import UserError
from filterscope.models import heads
from filterscope.models.backbone import Backbone, SmallCNN, small_cnn_backbone, torchvision_backbone
from filterscope.models.classifier import Classifier
from filterscope.models.forward_trace import calls_without_values
from filterscope.models.weights import on_meta_device


def published(name: str, num_classes: int = 1000) -> nn.Module:
    torch.manual_seed(3)
    return torchvision.models.get_model(name, weights=None, num_classes=num_classes).eval()


def normalised(images: Tensor, name: str) -> Tensor:
    preset = get_model_weights(name).DEFAULT.transforms()
    return torchvision.transforms.functional.normalize(images, preset.mean, preset.std)


def planted(name: str, folder) -> tuple[nn.Module, Backbone]:
    """A network as it would be published, and a backbone that read it from its file."""
    network = published(name)
    torch.save(network.state_dict(), folder / f"{name}.pth")
    return network, torchvision_backbone(name=name, weights=str(folder / f"{name}.pth"))


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["alexnet", "squeezenet1_1"])
def test_keep_is_torchvision_s_own_network_on_normalised_images(name, images, tmp_path):
    network, backbone = planted(name, tmp_path)
    classifier = heads.keep(backbone, num_classes=1000).eval()
    with torch.no_grad():
        assert torch.equal(classifier(images), network(normalised(images, name)))


def test_append_is_a_linear_map_of_the_published_logits(images, tmp_path):
    network, backbone = planted("mobilenet_v3_small", tmp_path)
    classifier = heads.append(backbone, num_classes=7).eval()
    with torch.no_grad():
        logits = network(normalised(images, "mobilenet_v3_small"))
        assert torch.equal(classifier(images), F.linear(logits, classifier.head.weight, classifier.head.bias))


def test_replace_is_a_linear_map_of_the_last_layer_s_input(images, tmp_path):
    network, backbone = planted("mobilenet_v3_small", tmp_path)
    classifier = heads.replace(backbone, num_classes=7).eval()
    network.classifier[3] = nn.Identity()
    with torch.no_grad():
        features = network(normalised(images, "mobilenet_v3_small"))
        assert torch.equal(classifier(images), F.linear(features, classifier.head.weight, classifier.head.bias))


@pytest.mark.parametrize(("name", "head"), [("alexnet", "replace"), ("resnet18", "keep"), ("mnasnet0_5", "replace")])
def test_torchvision_loads_an_export_and_returns_the_same_logits(name, head, images, tmp_path):
    torch.save(published(name, num_classes=6).state_dict(), tmp_path / "w.pth")
    backbone = torchvision_backbone(name=name, weights=str(tmp_path / "w.pth"))
    classifier = getattr(heads, head)(backbone, num_classes=6).eval()
    network = torchvision.models.get_model(name, weights=None, num_classes=6).eval()
    network.load_state_dict(classifier.export_state_dict())
    with torch.no_grad():
        assert torch.equal(network(normalised(images, name)), classifier(images))


def test_a_last_layer_without_bias_is_replaced_by_one_without():
    with on_meta_device():
        classifier = heads.replace(torchvision_backbone(name="maxvit_t", weights=None), num_classes=7)
    assert classifier.head.bias is None


def test_an_export_is_a_copy():
    classifier = heads.replace(small_cnn_backbone(), num_classes=7)
    state = classifier.export_state_dict()
    state["fc2.weight"].zero_()
    assert classifier.head.weight.abs().sum() > 0
    SmallCNN(num_classes=7).load_state_dict(state)


@pytest.mark.parametrize(("name", "head"), [("alexnet", "append"), ("alexnet", "linear"), ("squeezenet1_1", "replace")])
def test_a_head_that_the_published_network_has_no_layer_for_is_not_exported(name, head):
    with on_meta_device():
        classifier = getattr(heads, head)(torchvision_backbone(name=name, weights=None), num_classes=7)
    with pytest.raises(UserError, match=f"{name} as published has no place for this head.*head=replace or head=keep"):
        classifier.export_state_dict()


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("head", ["replace", "append", "linear", "keep"])
def test_small_cnn_accepts_every_head_and_one_or_three_channels(head, in_channels):
    backbone = small_cnn_backbone(in_channels=in_channels)
    classifier = getattr(heads, head)(backbone, num_classes=10)
    assert classifier(torch.rand(2, in_channels, 28, 28)).shape == (2, 10)
    assert classifier.in_channels == in_channels


def test_products_of_each_two_maps_are_averaged_and_their_square_roots_normalised(images, tmp_path):
    network, backbone = planted("alexnet", tmp_path)
    classifier = heads.linear(backbone, num_classes=7, pool="products").eval()
    with torch.no_grad():
        maps = network.features(normalised(images, "alexnet"))
        pairs = [(i, j) for i in range(256) for j in range(i, 256)]
        roots = torch.stack([(maps[:, i] * maps[:, j]).mean((1, 2)) for i, j in pairs], 1).sqrt()
        roots = (roots - roots.mean(1, keepdim=True)) / roots.std(1, keepdim=True, unbiased=False)
        expected = F.linear(roots, classifier.head.weight, classifier.head.bias)
        torch.testing.assert_close(classifier(images), expected, rtol=1e-2, atol=1e-2)
    assert classifier.head.in_features == 256 * 257 // 2
    zeros = torch.zeros(2, 5, 4, 4, requires_grad=True)
    heads.ProductPool()(zeros).sum().backward()
    assert zeros.grad is not None
    assert bool(zeros.grad.isfinite().all())


def test_other_networks_refuse_products():
    with on_meta_device():
        resnet = torchvision_backbone(name="resnet18", weights=None)
    with pytest.raises(UserError, match=r"head\.pool=products is possible for AlexNet and VGG only; .*resnet18"):
        heads.linear(resnet, num_classes=3, pool="products")


def test_small_cnn_computes_the_notebook_s_formula():
    classifier = heads.keep(small_cnn_backbone()).eval()
    images = torch.rand(4, 1, 28, 28)
    own = classifier.export_state_dict()
    maps = F.max_pool2d(F.relu(F.conv2d(images, own["conv1.weight"], own["conv1.bias"])), 2)
    maps = F.max_pool2d(F.relu(F.conv2d(maps, own["conv2.weight"], own["conv2.bias"])), 2)
    hidden = F.relu(F.linear(maps.flatten(1), own["fc1.weight"], own["fc1.bias"]))
    with torch.no_grad():
        assert torch.equal(classifier(images), F.linear(hidden, own["fc2.weight"], own["fc2.bias"]))


@pytest.mark.parametrize(("name", "width"), [("vgg11", 512), ("resnet18", 512), ("squeezenet1_1", 512)])
def test_a_trunk_outputs_pooled_features_and_has_no_head(name, width):
    with on_meta_device():
        classifier = heads.trunk(torchvision_backbone(name=name, weights=None))
    calls = calls_without_values(classifier, in_channels=3, image_size=64)
    assert calls is not None
    assert calls[-1].shape == (width,)
    assert [layer for layer in classifier.layers.values() if layer.kind == "linear"] == []
    with pytest.raises(UserError, match="export needs"):
        classifier.export_state_dict()


def test_squeezenet_kept_as_published_is_exported_whole():
    network = published("squeezenet1_1", num_classes=6)
    backbone = Backbone(network, name="squeezenet1_1", mean=[0.0] * 3, std=[1.0] * 3)
    state = heads.keep(backbone, num_classes=6).export_state_dict()
    assert state.keys() == network.state_dict().keys()


def test_keep_refuses_data_of_other_classes():
    with pytest.raises(UserError, match="outputs the 10 classes of small_cnn, the data has 7; use head=replace"):
        heads.keep(small_cnn_backbone(), num_classes=7)


def test_linear_refuses_a_network_whose_features_it_cannot_find():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3)

        def forward(self, images: Tensor) -> Tensor:
            return self.stem(images).mean(dim=(2, 3))

    backbone = Backbone(Odd(), name="odd", mean=[0.0] * 3, std=[1.0] * 3)
    with pytest.raises(UserError, match="cannot find where the features of odd end; use head=replace"):
        heads.linear(backbone, num_classes=7)


def test_a_classifier_starts_without_names_and_size():
    classifier = heads.replace(small_cnn_backbone(), num_classes=7)
    assert isinstance(classifier, Classifier)
    assert classifier.class_names == ()
    assert classifier.image_size is None
