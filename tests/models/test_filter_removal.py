"""Removed filters equal silenced ones, coupled layers are cut together, cut networks are rebuilt from their weights."""

import copy

import pytest
import torch
from torch import Tensor, nn

from filterscope.analysis.health.causes import ablated
from filterscope.errors import UserError
from filterscope.models.adapter import as_classifier
from filterscope.models.backbone import Backbone
from filterscope.models.classifier import Classifier
from filterscope.models.filter_graph import FilterGraph
from filterscope.models.filter_removal import cut_filters, fit_to_weights, multiply_adds
from filterscope.models.filter_reset import reset_filters
from filterscope.models.layers import find_layer

pytest.importorskip("torch_pruning", reason="torch-pruning is not installed")


class Nested(nn.Module):
    """A network in a module, so that its layers are named by their paths."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, pixels: Tensor) -> Tensor:
        return self.body(pixels)


class Residual(nn.Module):
    """A residual block and a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.first, self.second = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 8, 3, padding=1)
        self.depthwise, self.point = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 6, 1)
        self.fc = nn.Linear(6, 4)

    def forward(self, pixels: Tensor) -> Tensor:
        maps = self.norm(self.stem(pixels)).relu()
        maps = (maps + self.second(self.first(maps).relu())).relu()
        return self.fc(self.point(self.depthwise(maps).relu()).relu().mean((2, 3)))


class Grouped(nn.Module):
    """A convolution in two groups."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.grouped = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.grouped(self.first(pixels).relu()).relu().mean((2, 3))


def chain() -> Classifier:
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 10, 3), nn.BatchNorm2d(10), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(10, 6, 3), nn.ReLU()]
    return classifier_of(nn.Sequential(*parts, nn.Flatten(), nn.Linear(6 * 5 * 5, 4)))


def classifier_of(network: nn.Module) -> Classifier:
    backbone = Backbone(network, name="net", mean=[0.5] * 3, std=[0.25] * 3, image_size=16)
    return Classifier(
        backbone, nn.Identity(), num_classes=next(iter(network(torch.rand(1, 3, 16, 16)).shape[1:])), head_path=""
    ).eval()


def residual() -> Classifier:
    torch.manual_seed(0)
    return classifier_of(Nested(Residual()).eval())


def images() -> Tensor:
    return torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("make", "wanted", "removed"),
    [
        (chain, {"conv_1": [0, 4, 9], "conv_2": [5]}, {"0": [0, 4, 9], "4": [5]}),
        (residual, {"body.first": [1, 2, 3]}, {"body.first": [1, 2, 3]}),
        (
            residual,
            {"body.stem": [2], "body.second": [2], "body.depthwise": [2]},
            {"body.stem": [2], "body.second": [2], "body.depthwise": [2]},
        ),
        (residual, {"body.point": [0, 5]}, {"body.point": [0, 5]}),
    ],
)
def test_a_network_without_filters_equals_one_in_which_they_are_silenced(make, wanted, removed):
    classifier, masked = make(), make()
    before, operations = sum(p.numel() for p in masked.parameters()), multiply_adds(masked)
    named = {find(classifier, name): indices for name, indices in wanted.items()}
    cut = cut_filters(classifier, named)
    assert sorted(map(tuple, cut.filters.values())) == sorted(map(tuple, removed.values()))
    with torch.no_grad(), ablated(masked, named):
        assert torch.allclose(classifier(images()), masked(images()), atol=1e-5)
    assert sum(p.numel() for p in classifier.parameters()) < before
    assert multiply_adds(classifier) < operations


def find(classifier: Classifier, name: str) -> str:
    return next(each.name for each in classifier.layers.values() if name in (each.name, *each.aliases))


def test_coupled_filters_stay_if_one_of_them_is_needed_and_the_reason_is_given():
    classifier = residual()
    cut = cut_filters(classifier, {"body.stem": [1, 2], "body.second": [2], "body.depthwise": [2], "body.first": [0]})
    assert cut.filters == {"body.stem": [2], "body.second": [2], "body.depthwise": [2], "body.first": [0]}
    assert cut.kept["body.stem"] == {1: "its output goes with that of body.depthwise, body.second, which is needed"}


def test_the_last_filter_of_a_layer_and_equal_groups_stay():
    classifier = chain()
    layer = find(classifier, "conv_2")
    cut = cut_filters(classifier, {layer: range(6)})
    assert cut.kept[layer] == {5: "the last filter of its layer"}
    assert classifier(images()).shape == (5, 4)
    cut = cut_filters(classifier_of(Nested(Grouped()).eval()), {"body.first": [0], "body.grouped": [1]})
    assert not cut.filters
    assert "grouped convolution" in cut.kept["body.grouped"][1]


def test_what_other_filters_can_compute_is_cut_out_without_a_change_of_the_logits():
    classifier = chain()
    conv, norm = classifier.get_submodule("backbone.network.0"), classifier.get_submodule("backbone.network.1")
    with torch.no_grad():
        for tensor in (conv.weight, conv.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor[7] = tensor[2]
        norm.weight[7], norm.bias[7] = 3 * norm.weight[2], 3 * norm.bias[2]
        conv.weight[5], norm.weight[5], norm.bias[5] = 0, 0, 0.7  # a constant
        before = classifier(images())
    layer = find(classifier, "conv_1")
    silenced = copy.deepcopy(classifier)
    cut_filters(silenced, {layer: [5, 7]})
    assert not torch.allclose(silenced(images()), before, atol=1e-2)
    cut_filters(classifier, {layer: [5, 7]}, images=images())
    assert torch.allclose(classifier(images()), before, atol=1e-3)


@pytest.mark.parametrize("make", [chain, residual])
def test_a_network_that_is_fitted_to_its_cut_differs_less(make):
    classifier = make()
    before = classifier(images())
    names = ("body.stem", "body.second", "body.depthwise") if make is residual else ("conv_1", "conv_2")
    wanted = {find(classifier, name): [1, 3] for name in names}
    fitted = copy.deepcopy(classifier)
    cut_filters(classifier, wanted)
    cut_filters(fitted, wanted, images=images())
    assert (fitted(images()) - before).norm() < 0.8 * (classifier(images()) - before).norm()


def test_a_network_of_ones_own_can_be_cut():
    classifier = as_classifier(Nested(Residual()).eval(), image_size=16)
    cut = cut_filters(classifier, {"body.first": [1, 2]}, images=images())
    assert cut.filters == {"body.first": [1, 2]}
    assert classifier(images()).shape == (5, 4)
    assert find_layer(classifier.layers, "body.first").num_channels == 10


@pytest.mark.parametrize("make", [chain, residual])
def test_a_cut_network_is_rebuilt_from_its_weights(make):
    classifier, fresh = make(), make()
    cut_filters(
        classifier,
        {name: [0] for name in ("body.stem", "body.second", "body.depthwise", "body.first")}
        if make is residual
        else {find(classifier, "conv_1"): [0, 1]},
    )
    fit_to_weights(fresh, classifier.state_dict())
    fresh.load_state_dict(classifier.state_dict())
    assert torch.equal(fresh(images()), classifier(images()))


def test_a_network_that_torch_pruning_cannot_cut_is_one_clear_line():
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)

        def forward(self, pixels: Tensor) -> Tensor:
            return self.fc(self.conv(pixels).relu().mean((2, 3)).view(-1, 2, 4).flatten(1)[:, :8])

    with pytest.raises(UserError, match="net cannot be cut: torch-pruning does not support it"):
        cut_filters(classifier_of(Nested(Fixed()).eval()), {"body.conv": [0]})


class Untraceable(nn.Module):
    """Computes with gradients switched off, so that torch-pruning finds no graph."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.conv(pixels).detach().mean((2, 3))


def test_a_network_that_cannot_be_cut_is_left_in_its_modes_with_what_it_trains():
    classifier = classifier_of(Nested(Untraceable()))
    classifier.train()
    classifier.backbone.eval()
    classifier.get_parameter("backbone.network.body.conv.bias").requires_grad_(False)
    before = ([module.training for module in classifier.modules()], [p.requires_grad for p in classifier.parameters()])
    with pytest.raises(UserError, match=r"net cannot be cut: torch-pruning does not support it \(.+\)$"):
        cut_filters(classifier, {"body.conv": [0]})
    after = ([module.training for module in classifier.modules()], [p.requires_grad for p in classifier.parameters()])
    assert after == before


def test_a_fault_of_our_own_is_not_called_one_of_torch_pruning(monkeypatch):
    def fail(*_arguments: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(FilterGraph, "coupled", fail)
    with pytest.raises(ZeroDivisionError):
        cut_filters(chain(), {"conv_1": [0]})


def test_reset_filters_compute_what_the_network_did_with_them_silenced_and_can_learn():
    classifier, pixels = chain(), images()
    classifier.train()
    classifier(pixels)  # the batch norm has seen something
    classifier.eval()
    wanted = {find(classifier, "conv_1"): [0, 4], find(classifier, "conv_2"): [5]}
    with torch.no_grad(), ablated(classifier, wanted):
        silenced = classifier(pixels)
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    state = torch.get_rng_state()
    done = reset_filters(classifier, wanted, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert done.filters == wanted
    assert not any(module.training for module in classifier.modules())
    assert torch.allclose(classifier(pixels), silenced, atol=1e-6)
    kernel = "backbone.network.0.weight"
    now = classifier.state_dict()[kernel]
    assert torch.equal(now[[1, 2, 3]], before[kernel][[1, 2, 3]])
    assert not torch.isclose(now[[0, 4]], before[kernel][[0, 4]]).any()
    assert classifier.state_dict()["backbone.network.1.running_var"][0] == 1
    classifier(pixels).logsumexp(1).sum().backward()
    later = classifier.backbone.network[4].weight
    assert later.grad[:, 0].abs().max() > 0
    assert {id(parameter) for parameter, *_ in done.parts} >= {id(later), id(classifier.backbone.network[0].weight)}
    assert [(dim, indices) for parameter, dim, indices in done.parts if parameter is later] == [(1, [0, 4]), (0, [5])]


def test_filters_of_residual_and_frozen_layers_are_not_reset():
    classifier = residual()
    names = [name for name, layer in classifier.layers.items() if layer.kind == "conv"]
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    done = reset_filters(classifier, {name: [1] for name in names})
    assert sorted(done.filters) == ["body.first", "body.point"]
    changed = [name for name, tensor in classifier.state_dict().items() if not torch.equal(tensor, before[name])]
    assert {name.removeprefix("backbone.network.body.").split(".")[0] for name in changed} == {
        *("first", "second", "point", "fc")
    }
    classifier.get_submodule("backbone.network.body.second").weight.requires_grad_(False)
    assert sorted(reset_filters(classifier, {name: [1] for name in names}).filters) == ["body.point"]
