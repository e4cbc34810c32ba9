"""The health visual: numbers, a row per filter and per layer, warnings, and a frozen layer's exact zero."""

import logging

import pytest
import torch
from torch import nn

from filterscope.errors import UserError
from filterscope.models.backbone import Backbone, small_cnn_backbone
from filterscope.models.classifier import Classifier
from filterscope.models.heads import replace
from filterscope.probes.health.tally import Tally
from filterscope.visuals.health import Health
from filterscope.visuals.health_causes import HealthCauses
from filterscope.visuals.health_findings import COLUMNS
from filterscope.visuals.visual import Examples, Past, Table


def network() -> Classifier:
    torch.manual_seed(0)
    return replace(small_cnn_backbone(), num_classes=10)


def examples(count: int = 30) -> Examples:
    generator = torch.Generator().manual_seed(0)
    return Examples(images=torch.rand(count, 1, 28, 28, generator=generator), labels=torch.arange(count) % 10)


def test_every_filter_has_a_row_and_every_layer_its_numbers():
    shown = Health()(network(), examples(), Past())
    table, layers = shown["health"], shown["health/layers"]
    assert isinstance(table, Table)
    assert isinstance(layers, Table)
    assert table.columns == COLUMNS
    assert len(table.rows) == 30
    assert all(len(row) == len(COLUMNS) for row in table.rows)
    assert [sum(row[2:7]) == row[1] for row in layers.rows] == [True, True]
    for layer in ("block1_conv1", "block2_conv1"):
        shares = [shown[f"health/{verdict}/{layer}"] for verdict in ("useful", "idle", "noise", "dead", "duplicate")]
        assert sum(shares) == pytest.approx(1)
        assert shown[f"health/drift/{layer}"] == 0
        assert shown[f"health/cka/{layer}"] == 1


def test_a_frozen_layer_reads_exactly_zero_and_one_while_the_other_moves():
    classifier, past = network(), Past(epoch=0)
    classifier.module_of("conv_1").requires_grad_(False)
    Health()(classifier, examples(), past)
    with torch.no_grad():
        classifier.module_of("conv_2").weight.mul_(1.5).add_(0.1)
    past.epoch = 1
    shown = Health()(classifier, examples(), past)
    assert shown["health/drift/block1_conv1"] == 0
    assert shown["health/cka/block1_conv1"] == 1
    assert shown["health/drift/block2_conv1"] > 0.4
    assert shown["health/cka/block2_conv1"] < 1


def test_a_layer_that_dies_is_told_in_the_log(caplog):
    classifier, past = network(), Past(epoch=0)
    with torch.no_grad():
        classifier.module_of("conv_2").bias.fill_(1)
        Health()(classifier, examples(), past)
        classifier.module_of("conv_2").bias[:7] = -1e3
    past.epoch = 3
    with caplog.at_level(logging.WARNING):
        Health()(classifier, examples(), past)
    assert caplog.messages == ["block2_conv1: 7 of 20 filters have died since epoch 0"]


def test_what_a_validation_pass_gathered_is_used_instead_of_the_examples():
    classifier, past = network(), Past()
    tally = Tally.empty(filters=10, classes=10)
    tally.add(torch.full((7, 10, 4, 4), -1.0))
    past.gathered["activity"] = {"block1_conv1": tally}
    shown = Health()(classifier, examples(), past)
    assert shown["health/dead/block1_conv1"] == 1
    assert not past.gathered


def test_what_is_remembered_can_be_read_harmlessly(tmp_path):
    past = Past(epoch=0)
    Health()(network(), examples(), past)
    torch.save(past.store, tmp_path / "past.pt")
    kept = Past(epoch=1, store=torch.load(tmp_path / "past.pt", weights_only=True))
    assert Health()(network(), examples(), kept)["health/drift/block1_conv1"] == 0


def test_looking_changes_neither_weights_nor_random_state():
    classifier = network().train()
    before, state = {k: v.clone() for k, v in classifier.state_dict().items()}, torch.get_rng_state()
    Health()(classifier, examples(), Past())
    assert torch.equal(torch.get_rng_state(), state)
    assert classifier.training
    assert all(torch.equal(before[name], tensor) for name, tensor in classifier.state_dict().items())


def test_wrong_input_is_one_clear_line():
    with pytest.raises(UserError, match="health needs images"):
        Health()(network(), Examples(images=torch.empty(0, 1, 28, 28)), Past())
    with pytest.raises(UserError, match="has no kernels"):
        Health(layers=["fc1"])(network(), examples(), Past())
    parts = nn.Sequential(nn.Flatten(), nn.Linear(9, 2))
    flat = Classifier(Backbone(parts, name="flat", mean=[0], std=[1]), nn.Linear(2, 2), num_classes=2)
    with pytest.raises(UserError, match="this network has none"):
        Health()(flat, Examples(images=torch.rand(2, 1, 3, 3)), Past())


def test_silencing_compares_sets_of_one_size():
    classifier = network()
    with torch.no_grad():
        classifier.module_of("conv_1").bias.fill_(1)
        classifier.module_of("conv_1").bias[[2, 5]] = -1e3
    table = HealthCauses(draws=3, layers=["conv_1"])(classifier, examples(), Past())["health/causes"]
    assert isinstance(table, Table)
    ((layer, filters, silenced, unused, *_rest),) = table.rows
    assert (layer, filters, silenced) == ("block1_conv1", 10, 2)
    assert unused == 0  # dead filters
    assert len(table.rows[0]) == len(table.columns)


def test_causes_without_labels_are_one_clear_line():
    with pytest.raises(UserError, match="health_causes needs images with labels"):
        HealthCauses()(network(), Examples(images=torch.rand(4, 1, 28, 28)), Past())
