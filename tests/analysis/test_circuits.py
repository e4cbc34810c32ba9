"""Connections of filters are those of the executed network, and what filters add to a logit adds up to the logit."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from filterscope.analysis.activations import network_outputs
from filterscope.analysis.circuits import class_contributions, expanded_weights, kernel_shares
from filterscope.analysis.filter_inputs import trace_inputs
from filterscope.models.backbone import Backbone
from filterscope.models.classifier import Classifier


def as_network(network: nn.Module, features: int, classes: int = 3) -> Classifier:
    backbone = Backbone(network, name="planted", mean=[0.5] * 3, std=[0.25] * 3, image_size=32)
    return Classifier(backbone, nn.Linear(features, classes), num_classes=classes)


def chain(*between: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        *(between or (nn.ReLU(),)),
        nn.Conv2d(6, 8, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


class Mixed(nn.Module):
    """A residual block, a concatenation, a shuffle of channels, a gate, a product, and a module that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.inner = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.after_sum = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.after_shuffle = nn.Conv2d(8, 4, 1)
        self.gate = nn.Conv2d(4, 4, 1)
        self.after_gate = nn.Conv2d(4, 4, 1)
        self.after_product = nn.Conv2d(4, 4, 1)
        self.twice = nn.Conv2d(4, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return features."""
        stem = F.relu(self.norm(self.stem(images)), inplace=True)
        block = self.inner(stem)
        block += stem
        summed = self.after_sum(F.max_pool2d(F.relu(block), 2))
        joined = torch.cat([summed, F.max_pool2d(stem, 2)], dim=1)
        shuffled = joined.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2)
        mixed = self.after_shuffle(shuffled).relu()
        gated = self.after_gate(mixed * torch.sigmoid(self.gate(mixed.mean((2, 3), keepdim=True))))
        product = self.after_product(gated * mixed)
        return self.twice(self.twice(product)).relu().mean((2, 3))


def test_the_inputs_of_a_chain_are_the_filters_of_the_layer_before() -> None:
    found = trace_inputs(as_network(chain(nn.ReLU(), nn.MaxPool2d(2)), 8))
    assert found["block1_conv1"].image
    assert found["block1_conv1"].layers == []
    assert found["block2_conv1"].filters == [[("block1_conv1", i)] for i in range(6)]
    assert found["head"].filters == [[("block2_conv1", i)] for i in range(8)]


def test_the_inputs_of_a_flattened_map_are_the_filter_of_each_position() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, stride=8), nn.ReLU(), nn.Flatten())
    found = trace_inputs(as_network(network, 64))
    assert found["head"].filters == [[("block1_conv1", i // 16)] for i in range(64)]


def test_sums_concatenations_and_shuffles_are_followed_and_products_are_not_claimed() -> None:
    found = trace_inputs(as_network(nn.Sequential(Mixed()), 4))
    assert found["0.stem"].image
    assert found["0.inner"].filters == [[("0.stem", i)] for i in range(4)]
    assert [sorted(each) for each in found["0.after_sum"].filters] == [
        [("0.inner", i), ("0.stem", i)] for i in range(4)
    ]
    shuffled = [(layer, i) for i in range(4) for layer in ("0.after_sum", "0.stem")]
    assert found["0.after_shuffle"].filters == [[each] for each in shuffled]
    assert found["0.gate"].filters == [[("0.after_shuffle", i)] for i in range(4)]
    assert found["0.after_gate"].filters == [
        [("0.after_shuffle", i)] for i in range(4)
    ]  # scaled, not added, by the gate
    assert not {"0.after_product", "0.twice"} & set(found)


def test_looking_for_inputs_leaves_the_network_as_it_was() -> None:
    classifier = as_network(nn.Sequential(Mixed()), 4)
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    images = torch.rand(2, 3, 32, 32)
    outputs, random = network_outputs(classifier, images), torch.get_rng_state()
    trace_inputs(classifier)
    expanded_weights(classifier, "0.inner", "0.stem")
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, before[name]) for name, tensor in classifier.state_dict().items())
    assert torch.equal(network_outputs(classifier, images), outputs)


def test_weight_is_shared_among_the_inputs_of_a_filters_own_group() -> None:
    classifier = as_network(nn.Sequential(Mixed()), 4)
    with torch.no_grad():
        weights = classifier.module_of("0.after_sum").weight
        weights[3] = torch.tensor([3.0, -4.0]).view(2, 1, 1) / 9
    shares, signs = kernel_shares(classifier, "0.after_sum")
    assert shares[3].tolist() == pytest.approx([0, 0, 9 / 25, 16 / 25])
    assert signs[3].tolist() == pytest.approx([0, 0, 1, -1])
    assert kernel_shares(classifier, "0.inner")[0].tolist() == torch.eye(4).tolist()


@pytest.mark.parametrize("normed", [False, True])
def test_expanded_weights_are_the_kernels_multiplied_out(normed: bool) -> None:
    classifier = as_network(chain(*([nn.BatchNorm2d(6)] if normed else []), nn.ReLU()), 8)
    first, second = (classifier.module_of(name).weight.detach() for name in ("block1_conv1", "block1_conv2"))
    if normed:
        with torch.no_grad():
            classifier.module_of("block1_norm1").weight.copy_(torch.tensor([1.0, -2, 3, 0.5, -1, 1]))
        first = first * classifier.module_of("block1_norm1").weight.detach().view(-1, 1, 1, 1)
    found = expanded_weights(classifier, "block1_conv2", "block1_conv1")
    # A cross-correlation of a cross-correlation: both kernels are convolved with each other.
    expected = F.conv_transpose2d(second, first)
    assert found.shape == (8, 3, 5, 5)
    assert torch.allclose(found, expected, atol=2e-4)


def test_expanded_weights_find_a_planted_pattern_behind_a_strided_pool() -> None:
    classifier = as_network(chain(nn.ReLU(), nn.MaxPool2d(2)), 8)
    with torch.no_grad():
        for name in ("block1_conv1", "block2_conv1"):
            classifier.module_of(name).weight.zero_()
        classifier.module_of("block1_conv1").weight[2, 0, 1, 1] = 1.0  # red
        classifier.module_of("block1_conv1").weight[4, 2, 1, 1] = 1.0  # blue
        classifier.module_of("block2_conv1").weight[5, 2, 0, 0] = 1.0  # red at the upper left
        classifier.module_of("block2_conv1").weight[5, 4, 2, 2] = -1.0  # no blue at the lower right
    found = expanded_weights(classifier, "block2_conv1", "block1_conv1")
    expected = torch.zeros(3, 6, 6)
    expected[0, :2, :2], expected[2, 4:, 4:] = 0.25, -0.25  # a pool of 2 × 2 as an average
    assert torch.allclose(found[5], expected, atol=1e-6)
    assert not found[[0, 1, 2, 3, 4, 6, 7]].any()


def test_nothing_is_expanded_through_a_gate() -> None:
    assert expanded_weights(as_network(nn.Sequential(Mixed()), 4), "0.after_gate", "0.after_shuffle") is None


@pytest.mark.parametrize("flattened", [False, True])
def test_contributions_behind_pooling_are_exact_and_name_the_planted_filter(flattened: bool) -> None:
    network = chain()
    if flattened:
        network[-2] = nn.MaxPool2d(15)
    classifier = as_network(network, 32 if flattened else 8)
    with torch.no_grad():
        classifier.head.weight[1].view(8, -1)[5] = 9.0
    images = torch.rand(5, 3, 32, 32)
    found = class_contributions(classifier, images, trace_inputs(classifier)["head"])
    logits = network_outputs(classifier, images)
    assert found.exact
    assert found.layer == "block1_conv2"
    assert torch.allclose(found.values.sum(2) + classifier.head.bias.detach(), logits, atol=1e-4)
    assert found.values[:, 1].argmax(1).tolist() == [5] * 5
    own = class_contributions(classifier, images, trace_inputs(classifier)["head"], torch.ones(5, dtype=torch.long))
    assert torch.allclose(own.values, found.values[:, 1], atol=1e-5)


def test_contributions_through_another_layer_are_gradients_and_not_called_exact() -> None:
    network = chain()
    network.append(nn.Linear(8, 7)).append(nn.ReLU())
    classifier = as_network(network, 7)
    images = torch.rand(5, 3, 32, 32)
    found = class_contributions(classifier, images, trace_inputs(classifier)["head"])
    assert not found.exact
    assert found.values.shape == (5, 3, 8)
    with torch.no_grad():  # without the filter that adds most, the logit falls by about as much
        filter_ = int(found.values[:, 0].mean(0).argmax())
        before = network_outputs(classifier, images)[:, 0]
        classifier.module_of("block1_conv2").weight[filter_] = 0
        classifier.module_of("block1_conv2").bias[filter_] = 0
        fall = before - network_outputs(classifier, images)[:, 0]
    assert torch.allclose(fall, found.values[:, 0, filter_], rtol=0.3)
    own = class_contributions(classifier, images, None, torch.zeros(5, dtype=torch.long), batch_size=2)
    assert own.values.shape == (5, 8)
