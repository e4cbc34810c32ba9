"""Layer names: the rule for chains, aliases, and the error for an unknown name."""

import pytest
import torch
from torch import nn
from torchvision.models.vgg import cfgs

from filterscope.errors import UserError
from filterscope.models import heads
from filterscope.models.backbone import Backbone, small_cnn_backbone, torchvision_backbone
from filterscope.models.classifier import Classifier
from filterscope.models.layers import block_ends, channels_of, convolutions, find_layer
from filterscope.models.weights import on_meta_device


def classifier_of(name: str, head: str = "replace", num_classes: int = 7) -> Classifier:
    with on_meta_device():
        backbone = torchvision_backbone(name=name, weights=None)
        return getattr(heads, head)(backbone, num_classes=num_classes)


def names_by_rule(plan: list[int | str], extra: str = "") -> list[str]:
    """Apply the rule to torchvision's own plan of a VGG: numbers are convolutions, M is a pool."""
    names, block, conv = [], 1, 0
    for step in plan:
        if step == "M":
            names.append(f"block{block}_pool")
            block, conv = block + 1, 0
        else:
            conv += 1
            names += [f"block{block}_{kind}{conv}" for kind in ("conv", *([extra] if extra else []), "relu")]
    return names


@pytest.mark.parametrize(("depth", "plan"), [(11, "A"), (13, "B"), (16, "D"), (19, "E")])
@pytest.mark.parametrize("norm", ["", "_bn"])
def test_vgg_layers_are_named_block_by_block(depth, plan, norm):
    layers = classifier_of(f"vgg{depth}{norm}").layers
    named = [name for name in layers if name.startswith("block")]
    assert named == names_by_rule(cfgs[plan], "norm" if norm else "")
    assert block_ends(layers) == [f"block{i}_pool" for i in range(1, 6)]
    assert [layers[end].num_channels for end in block_ends(layers)] == [64, 128, 256, 512, 512]


def test_alexnet_has_five_convolutions_in_three_blocks():
    classifier = classifier_of("alexnet")
    features = classifier.backbone.network.features
    paths = {"block1_conv1": 0, "block2_conv1": 3, "block3_conv1": 6, "block3_conv2": 8, "block3_conv3": 10}
    assert convolutions(classifier.layers) == list(paths)
    for number, (name, index) in enumerate(paths.items(), start=1):
        assert classifier.module_of(name) is features[index]
        assert classifier.module_of(f"conv_{number}") is features[index]
        assert classifier.module_of(f"features.{index}") is features[index]
    ends = [classifier.module_of(name) for name in block_ends(classifier.layers)]
    assert ends == [features[2], features[5], features[12]]


def test_the_head_is_found_by_its_path_in_the_published_network():
    classifier = classifier_of("alexnet")
    for name in ("head", "classifier.6", "fc3"):
        assert classifier.module_of(name) is classifier.head
    assert classifier.layers["fc1"].path == "backbone.network.classifier.1"


def test_small_cnn_has_block_names_and_the_notebook_s_own():
    classifier = heads.replace(small_cnn_backbone(), num_classes=10)
    network = classifier.backbone.network
    assert classifier.module_of("block1_conv1") is classifier.module_of("conv1") is network.conv1
    assert classifier.module_of("block2_conv1") is classifier.module_of("conv2") is network.conv2
    assert classifier.module_of("fc2") is classifier.head
    assert block_ends(classifier.layers) == ["block1_pool", "block2_pool"]
    assert [classifier.layers[name].num_channels for name in block_ends(classifier.layers)] == [10, 20]


def test_vgg16_blocks_end_at_the_layers_of_the_notebook():
    with on_meta_device():
        features = torchvision_backbone(name="vgg16", weights=None).network.features
    for parameter in features.to_empty(device="cpu").parameters():
        nn.init.normal_(parameter, std=0.05)
    network = nn.Sequential(*features, nn.Flatten())
    backbone = Backbone(network, name="vgg16 features", mean=[0.0] * 3, std=[1.0] * 3, image_size=32)
    classifier = Classifier(backbone, nn.Identity(), num_classes=512)
    images = torch.rand(2, 3, 32, 32)
    ends = [classifier.module_of(name) for name in block_ends(classifier.layers)]
    outputs: dict[nn.Module, torch.Tensor] = {}
    for end in ends:
        end.register_forward_hook(lambda module, _inputs, output: outputs.setdefault(module, output))
    with torch.no_grad():
        classifier(images)
        for end, cut in zip(ends, (5, 10, 17, 24, 31), strict=True):
            assert torch.equal(outputs[end], network[:cut](images))


@pytest.mark.parametrize("name", ["alexnet", "vgg11", "squeezenet1_1", "mobilenet_v3_small"])
def test_layers_that_no_longer_run_are_not_listed(name):
    layers = classifier_of(name, "linear").layers
    assert [layer.name for layer in layers.values() if layer.kind == "linear"] == ["head"]
    with pytest.raises(UserError, match="unknown layer 'fc1'"):
        find_layer(layers, "fc1")


def test_the_error_for_an_unknown_layer_names_the_nearest_and_all_known_ones():
    layers = classifier_of("alexnet").layers
    with pytest.raises(UserError) as caught:
        find_layer(layers, "block1_cnov1")
    message = str(caught.value)
    assert message.startswith(
        "unknown layer 'block1_cnov1' (did you mean block1_conv1?); this network has block1_conv1,"
    )
    assert "block3_pool" in message
    assert "fc2" in message
    assert "\n" not in message


def test_the_error_for_a_deep_network_lists_few_layers():
    layers = classifier_of("resnet152").layers
    with pytest.raises(UserError) as caught:
        find_layer(layers, "block1_conv1")
    message = str(caught.value)
    assert "layer1.0.conv1" in message
    assert "relu" not in message
    assert message.endswith("and 95 more")  # ResNet-152 has 155 convolutions, projections included
    assert len(message) < 1500


def test_channels_are_chosen_by_index_by_count_or_all():
    layers = classifier_of("alexnet").layers
    assert channels_of(layers, "block1_conv1", [63, 0]) == [63, 0]
    assert channels_of(layers, "conv_1", 3) == [0, 1, 2]
    assert channels_of(layers, "block3_pool", None) == list(range(256))
    with pytest.raises(UserError, match="channel 64 of block1_conv1 does not exist; it has 0 to 63"):
        channels_of(layers, "block1_conv1", [0, 64])


def test_layers_are_found_at_a_size_that_the_network_accepts():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5))
    backbone = Backbone(network, name="tiny", mean=[0.0], std=[1.0])  # takes 8 and 9 pixels only, and does not say so
    classifier = heads.replace(backbone, num_classes=2)
    assert list(classifier.layers) == ["block1_conv1", "block1_relu1", "block1_pool", "3", "head"]
