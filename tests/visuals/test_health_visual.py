"""The health visual: numbers, a row for each filter and layer, warnings, and the exact zero drift of frozen layers."""

import copy
import dataclasses
import logging
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from filterscope.analysis.health.activity import BatchActivity, RunningSums
from filterscope.analysis.health.removal import compare_removals
from filterscope.analysis.health.structure import structure
from filterscope.analysis.health.verdict import Verdict
from filterscope.errors import UserError
from filterscope.models.backbone import Backbone, small_cnn_backbone
from filterscope.models.classifier import Classifier
from filterscope.models.heads import replace
from filterscope.visuals.health.causes import HealthCauses
from filterscope.visuals.health.findings import layer_table
from filterscope.visuals.health.health import Health
from filterscope.visuals.output.outputs import Table
from filterscope.visuals.visual import Examples, VisualState, recording_validation, render

MEASURES = (  # the kernels of this network are too small to be tested for structure
    *("importance", "importance_signed", "importance_se", "needed", "dead", "concentration", "z", "p", "inputs"),
    *("p_inputs", "uneven", "apoz", "activation", "eta_squared", "p_class", "selectivity", "cosine"),
    *("duplicate_of", "correlation", "drift_cosine", "drift"),
)


def network() -> Classifier:
    torch.manual_seed(0)
    return replace(small_cnn_backbone(), num_classes=10)


def examples(count: int = 30) -> Examples:
    generator = torch.Generator().manual_seed(0)
    return Examples(images=torch.rand(count, 1, 28, 28, generator=generator), labels=torch.arange(count) % 10)


def test_every_filter_has_a_row_and_every_layer_its_numbers():
    shown = Health(by_layer=True)(network(), examples(), VisualState())
    table, layers = shown["health"], shown["health/layers"]
    assert isinstance(table, Table)
    assert isinstance(layers, Table)
    assert table.columns == ("layer", "filter", "verdict", "reason", "classes_hurt", *MEASURES)
    assert len(table.rows) == 30
    assert all(len(row) == len(table.columns) for row in table.rows)
    words = [layers.columns.index(verdict) for verdict in Verdict if verdict in layers.columns]
    assert [sum(row[i] for i in words) == row[1] for row in layers.rows] == [True, True]
    needed, all_filters = sum(row[layers.columns.index("needed")] for row in layers.rows), 30
    assert layers.description.startswith(f"{needed} of {all_filters} filters are needed; ")
    assert shown["verdicts/needed"] == pytest.approx(needed / all_filters)
    said = {(row[0], str(row[1])): Verdict(row[2]) for row in table.rows}
    for row in layers.rows:
        most, least = (row[layers.columns.index(name)].split(", ") for name in ("most needed", "least needed"))
        assert all(said[row[0], i].needed for i in most if i)
        assert not any(said[row[0], i].needed for i in least if i)
    for layer in ("block1_conv1", "block2_conv1"):
        shares = [shown[f"health/{verdict}/{layer}"] for verdict in Verdict]
        assert sum(shares) == pytest.approx(1)
        assert shown[f"health/drift/{layer}"] == 0
        assert shown[f"health/cka/{layer}"] == 1


def test_a_frozen_layer_reads_exactly_zero_and_one_while_the_other_moves():
    classifier, state = network(), VisualState(epoch=0)
    classifier.module_of("conv_1").requires_grad_(False)
    Health()(classifier, examples(), state)
    with torch.no_grad():
        classifier.module_of("conv_2").weight.mul_(1.5).add_(0.1)
    state.epoch = 1
    shown = Health(by_layer=True)(classifier, examples(), state)
    assert shown["health/drift/block1_conv1"] == 0
    assert shown["health/cka/block1_conv1"] == 1
    assert shown["health/drift/block2_conv1"] > 0.4
    assert shown["health/cka/block2_conv1"] < 1


def test_a_dying_layer_is_a_warning(caplog):
    classifier, state = network(), VisualState(epoch=0)
    with torch.no_grad():
        classifier.module_of("conv_2").bias.fill_(1)
        Health()(classifier, examples(), state)
        classifier.module_of("conv_2").bias[:7] = -1e3
    state.epoch = 3
    with caplog.at_level(logging.WARNING):
        Health()(classifier, examples(), state)
    assert caplog.messages == ["block2_conv1: 7 of 20 filters have died since epoch 0"]


def test_records_of_a_validation_pass_are_used_instead_of_the_examples():
    classifier, state = network(), VisualState()
    sums = RunningSums(filters=10, classes=10)
    sums.update(BatchActivity.of_outputs(torch.full((7, 10, 4, 4), -1.0)))
    state.gathered["activity"] = {"block1_conv1": sums}
    shown = Health(by_layer=True)(classifier, examples(), state)
    assert shown["health/dead/block1_conv1"] == 1
    assert not state.gathered


def test_a_validation_pass_is_recorded_and_no_hook_remains():
    classifier, state, shown_images = network().eval(), VisualState(epoch=0), examples(30)
    with torch.no_grad(), recording_validation({"health": Health()}, classifier, state) as take:
        for images, labels in zip(shown_images.images.split(8), shown_images.labels.split(8), strict=True):
            classifier(images)
            take(labels)
    assert not any(module._forward_hooks for module in classifier.modules())
    recorded = Health(by_layer=True)(classifier, examples(5), state)
    alone = Health(by_layer=True)(classifier, shown_images, VisualState(epoch=0))
    # CKA and importance are measured on the examples.
    same = [
        tag for tag in alone if tag.startswith(("health/apoz", "health/dead", "health/drift", "health/eta_squared"))
    ]
    assert {tag: recorded[tag] for tag in same} == {tag: pytest.approx(alone[tag], rel=1e-4, abs=1e-5) for tag in same}
    assert state.store["health"]["block1_conv1"]["images"] == 30


def test_a_failed_validation_leaves_neither_hooks_nor_records():
    classifier, state = network(), VisualState(epoch=0)
    with pytest.raises(InterruptedError), recording_validation({"health": Health()}, classifier, state):
        raise InterruptedError
    assert not any(module._forward_hooks for module in classifier.modules())
    assert not state.gathered


def test_a_frozen_layer_is_run_and_judged_once():
    classifier, state = network().eval(), VisualState(epoch=0)
    classifier.backbone.requires_grad_(False)
    with torch.no_grad(), recording_validation({"health": Health()}, classifier, state) as take:
        classifier(examples().images)
        take(examples().labels)
    first = Health()(classifier, examples(5), state)
    state.epoch = 1
    runs = []
    classifier.register_forward_hook(lambda *_: runs.append(1))
    with recording_validation({"health": Health()}, classifier, state):
        assert not any(module._forward_hooks for module in classifier.backbone.modules())
    later = Health(by_layer=True)(classifier, examples(5), state)
    assert runs == []
    assert repr(later["health"].rows) == repr(first["health"].rows)
    assert later["health/cka/block1_conv1"] == 1


def test_outside_training_the_verdicts_on_unchanged_weights_are_kept():
    classifier, state = network(), VisualState(epoch=2)
    judged = Health()(classifier, examples(30), state)["health"]
    again = VisualState(store=state.store)
    assert repr(Health()(classifier, examples(3), again)["health"].rows) == repr(judged.rows)
    with torch.no_grad():
        classifier.module_of("conv_1").weight.add_(0.1)
    Health()(classifier, examples(3), again)
    assert again.store["health"]["block1_conv1"]["images"] == 3


def test_a_layer_that_stops_learning_is_one_warning(caplog):
    torch.manual_seed(0)
    layers = [part for _ in range(4) for part in (nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())]
    backbone = Backbone(nn.Sequential(*layers, nn.Flatten()), name="deep", mean=[0] * 3, std=[1] * 3)
    classifier, state = Classifier(backbone, nn.Linear(48, 2), num_classes=2), VisualState()
    shown_images = Examples(images=torch.rand(8, 3, 4, 4), labels=torch.arange(8) % 2)
    with caplog.at_level(logging.WARNING):
        for state.epoch in range(4):
            Health()(classifier, shown_images, state)
            with torch.no_grad():
                for name in ("conv_1", "conv_2", "conv_4"):
                    classifier.module_of(name).weight.mul_(1.1)
    still = [message for message in caplog.messages if "stopped learning" in message]
    assert still == [
        "block1_conv3 has stopped learning: in epoch 1 its weights changed by 0 %, the median layer's by 10 %"
    ]


def test_structure_older_than_the_training_is_not_credited_to_it():
    def records(start: float) -> dict[str, dict[str, object]]:
        record = {"verdicts": ["unknown"], "images": 9, "measures": {"z": torch.ones(1)}, "testable": True}
        return {"conv": record | {"numbers": {"drift": 0.1, "structured": 0.9}, "structured_at_start": start}}

    assert "learned before this training" in layer_table(records(0.9)).description
    assert layer_table(records(0.05)).description.endswith("With structure: 5% of the filters at epoch 0, 90% now.")


def test_records_can_be_loaded_with_weights_only(tmp_path):
    state = VisualState(epoch=0)
    Health()(network(), examples(), state)
    torch.save(state.store, tmp_path / "past.pt")
    kept = VisualState(epoch=1, store=torch.load(tmp_path / "past.pt", weights_only=True))
    assert Health(by_layer=True)(network(), examples(), kept)["health/drift/block1_conv1"] == 0


def test_judging_changes_neither_weights_nor_random_state():
    classifier = network().train()
    before, digest = {k: v.clone() for k, v in classifier.state_dict().items()}, torch.get_rng_state()
    Health()(classifier, examples(), VisualState())
    assert torch.equal(torch.get_rng_state(), digest)
    assert classifier.training
    assert all(torch.equal(before[name], tensor) for name, tensor in classifier.state_dict().items())


def test_wrong_input_is_a_clear_error():
    with pytest.raises(UserError, match="health needs images"):
        Health()(network(), Examples(images=torch.empty(0, 1, 28, 28)), VisualState())
    with pytest.raises(UserError, match="has no kernels"):
        Health(layers=["fc1"])(network(), examples(), VisualState())
    parts = nn.Sequential(nn.Flatten(), nn.Linear(9, 2))
    flat = Classifier(Backbone(parts, name="flat", mean=[0], std=[1]), nn.Linear(2, 2), num_classes=2)
    with pytest.raises(UserError, match="this network has none"):
        Health()(flat, Examples(images=torch.rand(2, 1, 3, 3)), VisualState())


def test_all_unneeded_filters_are_silenced_together_and_as_many_random_ones():
    classifier = network()
    with torch.no_grad():
        classifier.module_of("conv_1").bias.fill_(1)
        classifier.module_of("conv_1").bias[[2, 5]] = -1e3
    state = VisualState()
    table = HealthCauses(draws=3, layers=["conv_1"])(classifier, examples(), state)["health/causes"]
    assert isinstance(table, Table)
    ((layer, filters, unneeded, lost, *_rest),) = table.rows
    assert (layer, filters) == ("all at once", 10)
    assert unneeded >= 2
    assert isinstance(lost, float)
    assert all(len(row) == len(table.columns) for row in table.rows)


def test_dead_filters_alone_cost_nothing():
    classifier = network()
    with torch.no_grad():
        classifier.module_of("conv_1").bias[[2, 5]] = -1e3
    dead = {"block1_conv1": [2, 5]}
    pixels, labels = examples().images, torch.arange(30) % 10
    found = compare_removals(classifier, pixels, labels, unneeded=dead, draws=3)
    assert found is not None
    assert found.unneeded[:3] == (2, 0, pytest.approx(0, abs=1e-5))  # fitted weights are rounded otherwise
    assert found.silenced[:3] == (2, 0, 0)
    assert (found.random.size, found.all_fitted, found.fitted) == (2, True, ["block2_conv1"])
    assert compare_removals(classifier, pixels, labels, unneeded={"block1_conv1": []}) is None


def test_filters_and_layers_are_tested_one_by_one_on_demand():
    classifier, state = network(), VisualState(epoch=0)
    Health()(classifier, examples(), state)
    with torch.no_grad():
        classifier.module_of("conv_2").weight.mul_(-1)
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    shown = HealthCauses(draws=2, each=["conv_2"])(classifier, examples(), VisualState(store=state.store))
    layers, ablation = shown["health/layers_replaced"], shown["health/ablation"]
    assert isinstance(layers, Table)
    assert isinstance(ablation, Table)
    assert [row[0] for row in layers.rows] == ["all together", "block2_conv1"]
    assert all(isinstance(cell, float) for row in layers.rows for cell in row[1:])
    assert [row[:2] for row in ablation.rows] == [("block2_conv1", i) for i in range(20)]
    assert all(torch.equal(before[name], tensor) for name, tensor in classifier.state_dict().items())


def test_what_a_filter_changes_is_not_rounded_to_the_precision_of_the_training():
    classifier, shown, visual = network(), examples(), HealthCauses(draws=1, each=["conv_2"])
    precision = partial(torch.autocast, "cpu", torch.bfloat16)
    ablation = render({"it": visual}, classifier, shown, VisualState(), precision=precision)["health/ablation"]
    assert isinstance(ablation, Table)
    exact = copy.deepcopy(classifier).double().eval()
    for row in ablation.rows[:5]:
        without = copy.deepcopy(exact)
        with torch.no_grad():
            without.module_of("conv_2").weight[row[1]] = 0
            without.module_of("conv_2").bias[row[1]] = 0
            losses = [F.cross_entropy(each(shown.images.double()), shown.labels) for each in (exact, without)]
        assert row[4] == pytest.approx(float(losses[1] - losses[0]), abs=1e-6)


def test_a_run_without_epoch_0_cannot_be_rewound_and_says_so():
    table = HealthCauses(draws=2)(network(), examples(), VisualState())["health/layers_replaced"]
    assert isinstance(table, Table)
    assert table.rows[0][table.columns.index("rewound")] == ""
    assert "No kernels of epoch 0 are stored" in table.description


def test_importance_can_be_switched_off_and_then_need_is_unknown():
    shown = Health(importance=0)(network(), examples(), VisualState())
    assert {row[2] for row in shown["health"].rows} <= {"unknown", "dead", "duplicate"}
    assert "importance" not in shown["health"].columns
    assert "verdicts/needed" not in shown


def test_images_without_labels_are_judged_by_the_networks_own_predictions():
    unlabelled = dataclasses.replace(examples(), labels=None)
    assert "unknown" not in {row[2] for row in Health()(network(), unlabelled, VisualState())["health"].rows}


def test_large_patch_kernels_are_tested_in_seconds():
    kernels = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    kernels[0] += 0.2 * torch.arange(32.0).sin()[:, None]
    found = structure(kernels, together=True)
    assert found.structured.nonzero()[:, 0].tolist() == [0]


def test_causes_use_more_images_than_other_visuals():
    few = dataclasses.replace(examples(8), more=examples)
    table = HealthCauses(draws=2, images=40)(network(), few, VisualState())["health/causes"]
    assert isinstance(table, Table)
    assert "Of 40 images" in table.description


def test_of_many_kernels_that_are_too_small_a_few_are_named():
    parts = [nn.Conv2d(1 if i == 0 else 4, 4, 1 if i < 9 else 5, padding=0 if i < 9 else 2) for i in range(10)]
    for count, expected in ((10, ", block1_conv6 and 3 more."), (9, ": those of all layers.")):
        layers = [part for conv in parts[:count] for part in (conv, nn.ReLU())]
        backbone = Backbone(nn.Sequential(*layers, nn.Flatten()), name="n", mean=[0], std=[1], image_size=8)
        classifier = Classifier(backbone, nn.Linear(256, 10), num_classes=10).eval()
        few = Examples(images=torch.rand(12, 1, 8, 8), labels=torch.arange(12) % 10)
        said = Health(importance=0)(classifier, few, VisualState())["health/layers"].description
        assert said.endswith(expected)


def test_outside_training_activity_is_measured_on_as_many_images_as_importance():
    few = dataclasses.replace(examples(8), more=examples)
    assert "measured on 40 images" in Health(importance=40)(network(), few, VisualState())["health/layers"].description
    assert "measured on 8 images" in Health(importance=0)(network(), few, VisualState())["health/layers"].description


def test_causes_without_labels_are_a_clear_error():
    with pytest.raises(UserError, match="health_causes needs images with labels"):
        HealthCauses()(network(), Examples(images=torch.rand(4, 1, 28, 28)), VisualState())
