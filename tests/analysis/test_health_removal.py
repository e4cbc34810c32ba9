"""Filters that are taken away while the layers behind them are fitted: as when they are cut out."""

import copy

import pytest
import torch
from torch import Tensor, nn

from filterscope.analysis.health.causes import ablated
from filterscope.analysis.health.removal import LayersBehind, compare_removals, removal_costs, taken_away
from filterscope.analysis.hooks import observing
from filterscope.models.adapter import as_classifier
from filterscope.models.classifier import Classifier
from filterscope.models.filter_removal import cut_filters
from filterscope.models.input_fit import input_products
from filterscope.models.layers import find_layer


class Residual(nn.Module):
    """A residual block, a convolution in two groups, and a Linear on flattened maps."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 8, 1)
        self.grouped, self.fc = nn.Conv2d(8, 6, 3, groups=2), nn.Linear(6 * 12 * 12, 4)

    def forward(self, pixels: Tensor) -> Tensor:
        maps = self.stem(pixels).relu()
        maps = (maps + self.second(self.first(maps).relu())).relu()
        return self.fc(self.grouped(maps).relu().flatten(1))


def chain() -> Classifier:
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 10, 3), nn.BatchNorm2d(10), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(10, 6, 3), nn.ReLU()]
    network = nn.Sequential(*parts, nn.Flatten(), nn.Linear(6 * 5 * 5, 4)).eval()
    network[1].running_mean.uniform_(-0.1, 0.1)
    return as_classifier(network, image_size=16)


def images(count: int = 24) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def logits_without(classifier: Classifier, filters: dict[str, list[int]], fitted_to: Tensor, shown: Tensor) -> Tensor:
    behind = LayersBehind(classifier)
    with observing(classifier), torch.no_grad():
        products = input_products(classifier, behind.consumers.values(), fitted_to)
        with taken_away(classifier, filters, behind, products):
            return classifier(shown)


def test_filters_that_are_taken_away_leave_the_network_that_cutting_them_out_leaves():
    pytest.importorskip("torch_pruning", reason="torch-pruning is not installed")
    classifier, filters = chain(), {"block1_conv1": [2, 5, 7], "block2_conv1": [0, 4]}
    cut = copy.deepcopy(classifier)
    cut_filters(cut, filters, images=images())
    with torch.no_grad(), ablated(classifier, filters):
        silenced = classifier(images(5))
    found = logits_without(classifier, filters, images(), images(5))
    assert torch.allclose(found, cut(images(5)), atol=1e-5)
    assert not torch.allclose(found, silenced, atol=1e-2)


def test_looking_at_a_network_without_filters_leaves_it_bit_by_bit_as_it_was():
    classifier = chain()
    before = {name: (tensor, tensor.clone()) for name, tensor in classifier.named_parameters()}
    whole = classifier(images(4))
    found = compare_removals(classifier, images(), torch.arange(24) % 4, unneeded={"block1_conv1": [1, 2]}, draws=2)
    assert found is not None
    assert found.random.size == 2
    assert torch.equal(classifier(images(4)), whole)
    for name, tensor in classifier.named_parameters():
        assert tensor is before[name][0]
        assert tensor._version == 0 or torch.equal(tensor, before[name][1])


def test_a_copy_of_another_filter_can_go_without_loss_if_later_layers_are_fitted():
    classifier = chain()
    with torch.no_grad():
        for name, tensor in classifier.named_parameters():
            if name.startswith(("backbone.network.0", "backbone.network.1")):
                tensor[7] = tensor[2]
        norm = classifier.get_submodule("backbone.network.1")
        norm.running_mean[7] = norm.running_mean[2]
    labels = classifier(images(200)).argmax(1)
    sets = [{"conv_1": [7]}]
    fitted = removal_costs(classifier, images(200), labels, sets=sets, behind=LayersBehind(classifier))
    silenced = removal_costs(classifier, images(200), labels, sets=sets)
    assert abs(float(fitted[0, 1])) < 1e-4 < float(silenced[0].abs().max())


def test_layers_behind_an_addition_and_grouped_convolutions_are_not_fitted():
    torch.manual_seed(0)
    classifier = as_classifier(Residual().eval(), image_size=16)
    behind = LayersBehind(classifier)
    names = {name: find_layer(classifier.layers, name).name for name in ("stem", "first", "second", "grouped", "fc")}
    inside, outside, last = ({name: [0, 3]} for name in ("first", "stem", "grouped"))
    assert (list(behind.fitted(inside)), behind.all_fitted(inside)) == ([names["second"]], True)
    assert (list(behind.fitted(outside)), behind.all_fitted(outside)) == ([names["first"]], False)
    assert (behind.fitted(last), behind.all_fitted(last)) == ({names["fc"]: [0, 3]}, True)
    both = {"stem": [1], "second": [1]}
    assert (list(behind.fitted(both)), behind.all_fitted(both)) == ([names["first"]], False)
