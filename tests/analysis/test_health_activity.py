"""Activity and class information: planted results, exact null distributions, and sums independent of batches."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from scipy.stats import f_oneway, kstest
from torch import Tensor, nn

from filterscope.analysis.health.activity import POSITIONS, BatchActivity, RunningSums, activity, sample_positions
from filterscope.analysis.health.classes import class_information
from filterscope.analysis.health.recorder import output_tap, recording_activity
from filterscope.errors import UserError
from filterscope.models.backbone import Backbone, small_cnn_backbone
from filterscope.models.classifier import Classifier
from filterscope.models.heads import replace


def network() -> Classifier:
    torch.manual_seed(0)
    return replace(small_cnn_backbone(), num_classes=10).eval()


def images(count: int = 40) -> Tensor:
    return torch.rand(count, 1, 28, 28, generator=torch.Generator().manual_seed(1))


def sums_of(outputs: Tensor, labels: Tensor | None = None, classes: int = 10) -> RunningSums:
    sums = RunningSums(filters=outputs.shape[1], classes=classes)
    sums.update(BatchActivity.of_outputs(outputs), labels)
    return sums


def shuffled(responses: Tensor, sizes: list[int], *, times: int) -> Tensor:
    """Return the p-values of one filter under shuffled labels."""
    labels = torch.cat([torch.full((size,), k) for k, size in enumerate(sizes)])
    generator = torch.Generator().manual_seed(2)
    p = []
    for _ in range(times):
        order = torch.randperm(len(labels), generator=generator)
        p.append(class_information(sums_of(responses, labels[order], classes=len(sizes))).p[0])
    return torch.stack(p)


def test_planted_dead_filters_are_found_exactly():
    classifier = network()
    with torch.no_grad():
        classifier.module_of("conv_2").bias.fill_(1)
        classifier.module_of("conv_2").bias[[3, 11]] = -1e3
    with recording_activity(classifier, ["conv_1", "conv_2"]) as recorder, torch.no_grad():
        classifier(images())
        recorder.add()
    read = activity(recorder.sums["conv_2"])
    assert read.dead.nonzero()[:, 0].tolist() == [3, 11]
    assert read.apoz[3] == 1
    assert read.dormancy[3] == 0
    assert not activity(recorder.sums["conv_1"]).dead.any()


def test_many_small_batches_equal_one_large_one():
    classifier = network()
    shown = images(1100)
    labels = torch.arange(1100) % 3
    with recording_activity(classifier, ["conv_1", "conv_2"]) as recorder, torch.no_grad():
        for i, (some, known) in enumerate(zip(shown.split(100), labels.split(100), strict=True)):
            classifier(some)
            recorder.add(known if i != 4 else None)  # the classes of one batch are unknown
    for layer, sums in recorder.sums.items():
        with recording_activity(classifier, [layer]) as whole, torch.no_grad():
            classifier(shown)
            whole.add(labels)
        for name, expected in whole.sums[layer].metric_state.items():
            if not name.startswith("class"):
                few = 2.0 if name == "positive" else 1e-8  # an output near zero may be rounded to either sign
                assert torch.allclose(getattr(sums, name), expected, rtol=1e-4, atol=few)
        assert sums.images == 1100
        assert sums.class_sizes.sum() == 1000


def test_activity_follows_its_definitions():
    outputs = torch.randn(12, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    read, rectified = activity(sums_of(outputs)), outputs.relu().double()
    assert torch.allclose(read.apoz, (rectified == 0).double().mean((0, 2, 3)))
    assert torch.allclose(read.dormancy, rectified.mean((0, 2, 3)) / rectified.mean())
    expected = np.corrcoef(rectified.transpose(0, 1).flatten(1).numpy())
    assert np.allclose(read.correlation.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(5, 7, 9, 4), (3, 2, 1, 1), (4, 64, 30, 30), (1, 2, 5, 255)])
def test_responses_are_the_means_of_the_rectified_maps(shape, layout, dtype):
    maps = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype).contiguous(memory_format=layout)
    before = maps.clone()
    expected = maps.double().clamp_min(0).mean((2, 3))
    assert torch.allclose(BatchActivity.of_outputs(maps).responses.double(), expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(maps, before)


@pytest.mark.parametrize("size", [(13, 13), (55, 55), (224, 224), (6, 40)])
def test_sampled_positions_are_spread_over_rows_and_columns(size):
    positions = sample_positions(*size, most=8)
    rows, columns = positions.div(size[1], rounding_mode="floor"), positions % size[1]
    assert len(set(positions.tolist())) == 8
    for each, extent in ((rows, size[0]), (columns, size[1])):
        quarters = torch.bincount(each * 4 // extent, minlength=4)
        assert quarters.tolist() == pytest.approx([2, 2, 2, 2], abs=1)
    assert sample_positions(2, 4, most=8).tolist() == list(range(8))


def test_nan_is_never_positive():
    read = activity(sums_of(torch.tensor([[float("nan"), 1.0]])[:, :, None, None].expand(3, 2, 4, 4)))
    assert read.dead.tolist() == [True, False]


def test_in_large_maps_positive_values_are_counted_at_sampled_positions():
    outputs = (
        torch.randn(100, 3, 20, 20, generator=torch.Generator().manual_seed(0))
        + torch.tensor([-1, 0, 1])[:, None, None]
    )
    sums = sums_of(outputs)
    read = activity(sums)
    assert sums.samples == 100 * POSITIONS
    assert torch.allclose(read.apoz, (outputs <= 0).double().mean((0, 2, 3)), atol=0.05)


def test_scaled_copies_correlate_perfectly_and_constant_filters_with_nothing():
    outputs = torch.randn(4, 1, 8, 8).abs()
    constant = torch.full_like(outputs, 0.7)
    correlation = activity(sums_of(torch.cat([outputs, 3 * outputs, constant], 1))).correlation
    assert correlation[0, 1] == pytest.approx(1, abs=1e-4)
    assert correlation[2].tolist() == [0, 0, 0]


def test_batches_add_up_to_the_whole():
    outputs, labels = torch.randn(12, 5, 6, 6), torch.arange(12) % 3
    whole, batched = sums_of(outputs, labels, 3), sums_of(outputs[:5], labels[:5], 3)
    batched.update(BatchActivity.of_outputs(outputs[5:]), labels[5:])
    for name, tensor in whole.metric_state.items():
        assert torch.allclose(getattr(batched, name), tensor, rtol=1e-4, atol=1e-4), name


def _reduce(rank: int, path: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{path}/rendezvous", rank=rank, world_size=2)
    outputs, labels = torch.arange(32.0).view(4, 2, 2, 2).sin(), torch.tensor([0, 1, 1, 0])
    sums = sums_of(outputs[rank::2], labels[rank::2], 2)
    sums.sum_over_ranks()
    if rank == 0:
        torch.save(dict(sums.metric_state), f"{path}/sums.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_add_up_to_the_sums_of_one(tmp_path):
    mp.spawn(_reduce, args=(str(tmp_path),), nprocs=2)
    outputs, labels = torch.arange(32.0).view(4, 2, 2, 2).sin(), torch.tensor([0, 1, 1, 0])
    for name, tensor in torch.load(tmp_path / "sums.pt").items():
        assert torch.allclose(tensor, getattr(sums_of(outputs, labels, 2), name), rtol=1e-4, atol=1e-4), name


def test_recording_leaves_no_hooks_even_after_an_error():
    classifier = network()
    with pytest.raises(ZeroDivisionError), recording_activity(classifier, ["conv_1"]):
        raise ZeroDivisionError
    assert not any(module._forward_hooks for module in classifier.modules())


def test_a_convolution_is_recorded_behind_its_norm_and_activation():
    parts = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3))
    classifier = Classifier(Backbone(parts, name="tiny", mean=[0], std=[1]), nn.Flatten(), num_classes=4)
    assert output_tap(classifier, "block1_conv1").module is parts[2]
    assert output_tap(classifier, "conv_2").module is parts[4]


def test_eta_squared_and_selectivity_follow_their_definitions():
    responses, labels = torch.rand(30, 1, dtype=torch.float64).float(), torch.arange(30) % 3
    read = class_information(sums_of(responses[:, :, None, None], labels, 3))
    groups = [responses[labels == k, 0].double().numpy() for k in range(3)]
    f = f_oneway(*groups).statistic
    assert read.eta_squared[0].item() == pytest.approx(f * 2 / (f * 2 + 27), rel=1e-4)
    means = sorted(group.mean() for group in groups)
    others = (means[0] + means[1]) / 2
    assert read.selectivity[0].item() == pytest.approx((means[2] - others) / (means[2] + others), rel=1e-4)


def test_a_filter_for_a_single_class_has_selectivity_one_and_a_tiny_p():
    labels = torch.arange(60) % 6
    outputs = ((labels == 2).float() * (1 + torch.rand(60)))[:, None, None, None]
    read = class_information(sums_of(outputs, labels, 6))
    assert read.selectivity[0].item() == pytest.approx(1, abs=1e-5)
    assert read.p[0] < 1e-6


@pytest.mark.parametrize("shape", ["even", "sparse", "heavy"])
def test_p_is_uniform_under_shuffled_labels(shape):
    generator = torch.Generator().manual_seed(4)
    drawn = torch.rand(200, 1, 1, 1, generator=generator)
    responses = {"even": drawn, "sparse": (drawn - 0.6).relu(), "heavy": drawn**8}[shape]
    p = shuffled(responses, [70, 50, 40, 25, 15], times=400)
    assert kstest(p.numpy(), "uniform").pvalue > 0.01


def test_the_moments_behind_p_equal_those_of_drawn_permutations():
    responses = F.one_hot(torch.tensor([0] * 3 + [1] * 21), 2)[:, :1].float()[:, :, None, None] * torch.rand(
        24, 1, 1, 1
    )
    labels = torch.cat([torch.full((size,), k) for k, size in enumerate([10, 8, 6])])
    etas = []
    for _ in range(3000):
        read = class_information(sums_of(responses, labels[torch.randperm(24)], 3))
        etas.append(read.eta_squared[0])
    drawn = torch.stack(etas)
    from filterscope.analysis.health.classes import _mean_of_square

    centred = responses.flatten().double() - responses.double().mean()
    spread = centred.pow(4).sum() / centred.square().sum() ** 2
    exact = _mean_of_square(spread[None], torch.tensor([10.0, 8.0, 6.0], dtype=torch.float64))[0]
    assert drawn.mean().item() == pytest.approx(2 / 23, rel=0.05)
    assert drawn.square().mean().item() == pytest.approx(float(exact), rel=0.08)


def test_too_few_images_are_one_clear_line():
    with pytest.raises(UserError, match="at least two classes and four images more than classes, not 6 labelled"):
        class_information(sums_of(torch.rand(6, 2, 3, 3), torch.arange(6) % 3, 3))
    with pytest.raises(UserError, match="at least one image"):
        activity(RunningSums(filters=2, classes=2))
    with pytest.raises(UserError, match="has no kernels"), recording_activity(network(), ["fc1"]):
        pass
