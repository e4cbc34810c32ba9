"""Similarity, ablation, scrambled images and verdicts find planted results."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from filterscope.analysis.health.activity import activity
from filterscope.analysis.health.causes import (
    ablate_each,
    ablated,
    accuracy,
    natural_preference,
    phase_scrambled,
    reinitialized_copy,
    with_kernels,
)
from filterscope.analysis.health.classes import class_information
from filterscope.analysis.health.importance import importance_of, loss_changes
from filterscope.analysis.health.input_weights import weighing
from filterscope.analysis.health.judgement import Judgement, judge_filters
from filterscope.analysis.health.measures import LayerHealth, measure_layer
from filterscope.analysis.health.recorder import is_rectified, record_activity
from filterscope.analysis.health.removal import removal_costs
from filterscope.analysis.health.similarity import drift, duplicates, linear_cka
from filterscope.analysis.health.structure import structure
from filterscope.errors import UserError
from filterscope.models.backbone import Backbone, torchvision_backbone
from filterscope.models.classifier import Classifier
from filterscope.models.heads import linear

REAL = os.environ.get("FILTERSCOPE_REAL")
needs_real = pytest.mark.skipif(REAL is None, reason="FILTERSCOPE_REAL is not set")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tiny(filters: int = 12) -> Classifier:
    """Return a network whose filters are waves: all structured, all active."""
    torch.manual_seed(0)
    parts = nn.Sequential(nn.Conv2d(1, filters, 7, padding=3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    y, x = torch.meshgrid(torch.arange(7.0), torch.arange(7.0), indexing="ij")
    turns = torch.arange(float(filters)) / filters * torch.pi
    waves = torch.sin(1.2 * (turns.cos()[:, None, None] * x + turns.sin()[:, None, None] * y))
    with torch.no_grad():
        parts[0].weight.copy_(waves[:, None])
    return Classifier(Backbone(parts, name="tiny", mean=[0.5], std=[0.25]), nn.Linear(filters, 3), num_classes=3).eval()


def stripes(count: int = 48) -> tuple[Tensor, Tensor]:
    """Return images of stripes whose direction is the class."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(count) % 3
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
    turn, phase = labels * torch.pi / 3, torch.rand(count, generator=generator) * 6
    wave = turn.cos()[:, None, None] * x + turn.sin()[:, None, None] * y
    images = 0.5 + 0.4 * torch.sin(1.2 * wave + phase[:, None, None])
    return (images + 0.05 * torch.randn(images.shape, generator=generator))[:, None].clamp(0, 1), labels


def judged(classifier: Classifier, images: Tensor, labels: Tensor, *, need: bool = True) -> list[Judgement]:
    sums, responses = record_activity(classifier, images, labels, layers=["conv_1"])
    kernels, acts = classifier.module_of("conv_1").weight.detach(), activity(sums["conv_1"])
    changes = loss_changes(classifier, images, labels, layers=["conv_1"])["conv_1"]
    layer = LayerHealth(
        kernels=kernels,
        responses=responses["conv_1"],
        first_responses=responses["conv_1"],
        structure=structure(kernels),
        weighing=weighing(kernels),
        activity=acts,
        rectified=is_rectified(classifier, "conv_1"),
        classes=class_information(sums["conv_1"]),
        duplicates=duplicates(kernels, acts.correlation),
        drift=drift(kernels, kernels),
        importance=importance_of(changes, labels) if need else None,
    )
    return judge_filters(measure_layer(layer)[0], images=acts.images)


def test_every_planted_fault_gets_its_verdict_and_the_rest_are_useful_or_idle():
    classifier = tiny()
    conv = classifier.module_of("conv_1")
    with torch.no_grad():
        conv.bias[2] = -1e3
        conv.weight[5] = noise(1, 7, 7, seed=1)
        conv.weight[7], conv.bias[7] = 0.5 * conv.weight[8], 0.5 * conv.bias[8]
        classifier.head.weight[:, [5, 9]] = 0
    said = judged(classifier, *stripes())
    assert [said[i].verdict for i in (2, 5, 7, 9)] == ["dead", "noise", "duplicate", "idle"]
    assert {each.verdict for i, each in enumerate(said) if i not in (2, 5, 7)} == {"useful", "idle"}
    assert said[7].reason.startswith("does what filter 8 does")
    assert said[2].reason == "never active on 48 images"
    assert "by chance (p = 0." in said[5].reason
    assert said[9].reason.startswith("not needed: without it the loss is expected to rise by 0 ± 0; structured")


@pytest.mark.parametrize(
    ("needed", "structured", "uneven", "verdict"),
    [
        (1, 1, 0, "useful"),
        (1, 0, 1, "useful"),
        (1, 0, 0, "unstructured"),
        (0, 1, 0, "idle"),
        (0, 0, 1, "idle"),
        (0, 0, 0, "noise"),
        (1, None, None, "useful"),
        (0, None, None, "idle"),
        (None, 1, 1, "unknown"),
    ],
)
def test_two_questions_decide_the_verdict(needed, structured, uneven, verdict):
    row = {"dead": 0, "duplicate_of": -1, "importance_signed": 0.1, "importance_se": 0.01, "z": 3.0, "p": 0.2}
    row |= {"p_inputs": 0.3, "needed": needed, "structured": structured, "uneven": uneven}
    measures = {key: torch.tensor([value]) for key, value in row.items() if value is not None}
    assert judge_filters(measures, images=4)[0].verdict == verdict


def test_the_reason_of_a_filter_whose_effects_cancel_on_average_says_so():
    row = {"dead": 0, "duplicate_of": -1, "importance_signed": -2e-5, "importance_se": 1e-4, "needed": 1}
    (said,) = judge_filters({key: torch.tensor([value]) for key, value in row.items()}, images=4)
    assert said.reason.startswith(
        "needed: without it the loss rises on some images and falls on others, -2e-05 ± 0.0001 on average; "
    )


def test_without_importance_need_is_unknown_and_dead_filters_and_copies_are_still_found():
    classifier = tiny()
    conv = classifier.module_of("conv_1")
    with torch.no_grad():
        conv.bias[2] = -1e3
        conv.weight[7], conv.bias[7] = 0.5 * conv.weight[8], 0.5 * conv.bias[8]
    said = [each.verdict for each in judged(classifier, *stripes(), need=False)]
    assert (said[2], said[7]) == ("dead", "duplicate")
    assert {each for i, each in enumerate(said) if i not in (2, 7)} == {"unknown"}


def test_small_kernels_are_never_called_noise():
    classifier = tiny()
    parts = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), *list(classifier.backbone.network)[1:])
    small = Classifier(Backbone(parts, name="small", mean=[0.5], std=[0.25]), nn.Linear(12, 3), num_classes=3).eval()
    said = judged(small, *stripes())
    assert not {"noise", "unstructured"} & {each.verdict for each in said}
    assert any("too small to tell from chance" in each.reason for each in said)


def test_exact_and_scaled_copies_are_found_and_negated_ones_are_not():
    kernels = noise(64, 16, 3, 3)
    kernels[10], kernels[20], kernels[30] = kernels[3], 0.2 * kernels[4], -kernels[5]
    found = duplicates(kernels)
    assert found.of.ge(0).nonzero()[:, 0].tolist() == [10, 20]
    assert found.of[[10, 20]].tolist() == [3, 4]
    assert found.cosine[30] == pytest.approx(1, abs=1e-5)


def test_equal_kernels_of_other_groups_are_no_copies_but_equal_outputs_are():
    kernels = noise(6, 1, 3, 3)
    kernels[3] = kernels[1]
    outputs = torch.eye(6, dtype=torch.float64)
    assert duplicates(kernels, outputs, groups=6).of.tolist() == [-1] * 6
    assert duplicates(kernels, outputs, groups=6).cosine.isnan().all()
    outputs[4, 2] = outputs[2, 4] = 0.99
    assert sum(of >= 0 for of in duplicates(kernels, outputs, groups=6).of.tolist()) == 1


def test_the_original_of_a_copy_is_no_copy_itself():
    kernels = noise(3, 1, 3, 3)
    kernels *= torch.tensor([1.0, 2.0, 3.0])[:, None, None, None] / kernels.flatten(1).norm(dim=1)[:, None, None, None]
    outputs = torch.tensor([[1, 0.96, 0.92], [0.96, 1, 0.96], [0.92, 0.96, 1]])
    assert duplicates(kernels, outputs).of.tolist() == [-1, 2, -1]
    outputs[0, 2] = outputs[2, 0] = 0.951
    assert duplicates(kernels, outputs).of.tolist() == [2, 2, -1]


def test_unchanged_kernels_have_exactly_zero_drift_and_cosine_one():
    kernels, responses = noise(8, 4, 3, 3), noise(20, 8, seed=1)
    still = drift(kernels, kernels.clone())
    assert still.distance.eq(0).all()
    assert still.cosine.eq(1).all()
    assert linear_cka(responses, responses.clone()) == 1


def test_drift_and_cka_follow_their_definitions():
    moved = drift(torch.tensor([3.0, 4.0]).view(1, 1, 1, 2), torch.tensor([4.0, -3.0]).view(1, 1, 1, 2))
    assert moved.cosine[0] == pytest.approx(0, abs=1e-9)
    assert moved.distance[0] == pytest.approx(2**0.5)
    a, b = noise(30, 5), noise(30, 7, seed=1)
    centre = torch.eye(30) - 1 / 30
    k, m = centre @ (a @ a.T) @ centre, centre @ (b @ b.T) @ centre
    hsic = (k * m).sum() / (k.norm() * m.norm())  # equation 3 of the paper, by Gram matrices
    assert linear_cka(a, b) == pytest.approx(float(hsic), rel=1e-4)
    turn = torch.linalg.qr(noise(5, 5, seed=2))[0]
    assert linear_cka(a, 3 * a @ turn) == pytest.approx(1, abs=1e-5)


def test_ablating_dead_filters_changes_no_logit_and_leaves_no_hook():
    classifier, (images, labels) = tiny(), stripes()
    with torch.no_grad():
        classifier.module_of("conv_1").bias[2] = -1e3
        whole = classifier(images)
        with ablated(classifier, {"conv_1": [2]}):
            assert torch.equal(classifier(images), whole)
        with ablated(classifier, {"conv_1": [3]}):
            assert not torch.equal(classifier(images), whole)
        assert torch.equal(classifier(images), whole)
    lost = removal_costs(classifier, images, labels, sets=[{"conv_1": [2]}, {"conv_1": range(12)}])
    assert lost[0].tolist() == [0, 0]
    said = labels == classifier.head.bias.argmax()  # what the network says of every image when nothing is left
    expected = accuracy(classifier, images, labels) - float(said.double().mean())
    assert float(lost[1, 0]) == pytest.approx(expected, abs=1e-6)


def test_silencing_filters_one_by_one_in_batches_equals_silencing_each_by_itself():
    classifier, (images, labels) = tiny(), stripes(20)
    found = ablate_each(classifier, images, labels, layer="conv_1", filters=[0, 3, 11], rows=32)
    with torch.no_grad():
        whole = nn.functional.cross_entropy(classifier(images), labels, reduction="none")
        for place, each in enumerate((0, 3, 11)):
            with ablated(classifier, {"conv_1": [each]}):
                logits = classifier(images)
            lost = nn.functional.cross_entropy(logits, labels, reduction="none") - whole
            assert torch.allclose(found.losses[:, place], lost, atol=1e-5)
    assert found.right.shape == (20, 3)


def test_other_kernels_are_taken_back_bit_by_bit():
    classifier = tiny()
    before = classifier.module_of("conv_1").weight.clone()
    with pytest.raises(ZeroDivisionError), with_kernels(classifier, {"conv_1": torch.zeros_like(before)}):
        raise ZeroDivisionError
    assert torch.equal(classifier.module_of("conv_1").weight, before)


def test_scrambling_keeps_the_amplitude_spectrum_and_the_mean():
    images = torch.rand(2, 3, 15, 16)
    scrambled = phase_scrambled(images)
    assert not torch.allclose(images, scrambled, atol=0.05)
    assert torch.allclose(torch.fft.fft2(images).abs(), torch.fft.fft2(scrambled).abs(), atol=1e-3)
    assert torch.allclose(images.mean((2, 3)), scrambled.mean((2, 3)), atol=1e-5)


def test_a_reinitialized_copy_has_other_weights_and_leaves_the_random_state():
    classifier = tiny()
    before = torch.get_rng_state()
    fresh = reinitialized_copy(classifier)
    assert torch.equal(torch.get_rng_state(), before)
    assert fresh.module_of("conv_1").weight.shape == classifier.module_of("conv_1").weight.shape
    assert not torch.equal(fresh.module_of("conv_1").weight, classifier.module_of("conv_1").weight)


def test_wrong_input_is_one_clear_line():
    classifier, (images, labels) = tiny(), stripes()
    with pytest.raises(UserError, match="ablation needs images with labels: got 0 images"):
        accuracy(classifier, images[:0], labels[:0])
    with pytest.raises(UserError, match="has no kernels"), ablated(classifier, {"head": [0]}):
        pass
    with pytest.raises(UserError, match="at least one image"):
        natural_preference(classifier, images[:0], layers=["conv_1"])
    with pytest.raises(UserError, match="at least three"):
        linear_cka(noise(2, 4), noise(2, 4))
    with pytest.raises(UserError, match="cannot be compared"):
        drift(noise(2, 1, 3, 3), noise(2, 1, 5, 5))


@pytest.mark.real
@needs_real
def test_noise_and_copies_planted_in_real_alexnet_layers_are_found():
    path = Path(str(REAL)) / "weights" / "alexnet_features.pth"
    classifier = linear(torchvision_backbone(name="alexnet", weights=str(path)), num_classes=3)
    for layer in ("block1_conv1", "block2_conv1"):
        original, kept = classifier.module_of(layer).weight.detach(), []
        planted = torch.arange(len(original)) % 4 == 0
        for seed in range(4):
            kernels = original.clone()
            made = noise(*kernels[planted].shape, seed=seed)
            sizes = kernels[planted].flatten(1).norm(dim=1) / made.flatten(1).norm(dim=1)
            kernels[planted] = made * sizes[:, None, None, None]
            found = structure(kernels, together=layer == "block1_conv1", draws=199).structured
            kept.append(found[planted])
            assert found[~planted].float().mean() >= 0.99
        assert torch.cat(kept).float().mean() <= 0.1
        kernels[[1, 9, 17]] = torch.tensor([0.8, 0.5, 0.25])[:, None, None, None] * kernels[[2, 10, 18]]
        of = duplicates(kernels).of
        assert of.ge(0).nonzero()[:, 0].tolist() == [1, 9, 17]
        assert of[[1, 9, 17]].tolist() == [2, 10, 18]
