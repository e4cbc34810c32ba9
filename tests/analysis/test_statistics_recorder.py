"""Recorded statistics equal measured ones and take bounded memory."""

import pytest
import torch

from filterscope.analysis.synthesis import measure_statistics, statistics_recorder
from filterscope.analysis.synthesis.statistics_recorder import RunningStatistics, recording_statistics
from filterscope.models import heads
from filterscope.models.backbone import small_cnn_backbone, torchvision_backbone

LAYERS = ["block1_conv1", "block2_pool", "head"]


def test_recorded_statistics_equal_measured_ones():
    torch.manual_seed(0)
    network = heads.replace(small_cnn_backbone(in_channels=1, image_size=32), num_classes=4).eval()
    images = torch.rand(50, 1, 32, 32)
    with recording_statistics(network, LAYERS) as recorder, torch.no_grad():
        for batch in torch.split(images, 16):
            network(batch)
            recorder.add()
    assert not any(module._forward_hooks for module in network.modules())
    recorded, measured = recorder.statistics(), measure_statistics(network, images, LAYERS)
    for layer in LAYERS:
        for name, value in vars(measured.of(layer)).items():
            assert torch.allclose(torch.as_tensor(getattr(recorded.of(layer), name)), torch.as_tensor(value), atol=1e-5)


def test_maps_are_rectified_and_a_linear_is_not():
    torch.manual_seed(0)
    network = heads.replace(torchvision_backbone(name="alexnet", weights=None), num_classes=4).eval()
    images = torch.rand(3, 3, 64, 64)
    layers = ["block1_conv1", "block1_relu1", "block1_pool", "fc1", "head"]
    with recording_statistics(network, layers) as recorder, torch.no_grad():
        network(images)
        recorder.add()
    measured = measure_statistics(network, images, layers)
    for layer in layers:
        assert torch.allclose(recorder.statistics().of(layer).largest, measured.of(layer).largest, atol=1e-5)
    assert (measured.of("fc1").largest < 0).any()  # as it is, not rectified


def test_layers_that_did_not_run_have_no_statistics():
    network = heads.replace(small_cnn_backbone(in_channels=1, image_size=32), num_classes=4)
    with recording_statistics(network, LAYERS) as recorder:
        pass
    assert recorder.statistics().layers == {}


def test_the_sample_is_bounded_and_the_maximum_exact(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(statistics_recorder, "SAMPLE", 64)
    values = torch.rand(1000, 3, generator=torch.Generator().manual_seed(0))
    seen = RunningStatistics()
    for batch in torch.split(values, 37):
        seen.add(batch)
    assert len(seen.sample) <= 64
    assert torch.equal(seen.sample, values[:: seen.stride])
    known = seen.statistics()
    assert known.count == 1000
    assert torch.equal(known.largest, values.max(dim=0).values)
    assert torch.allclose(known.std, values.std(dim=0, correction=0), atol=1e-6)
    assert torch.allclose(known.percentile(values.median(dim=0).values, [0, 1, 2]), torch.full((3,), 50.0), atol=15)


def test_merged_statistics_are_those_of_all_images():
    values = torch.rand(30, 3, generator=torch.Generator().manual_seed(0))
    parts = [RunningStatistics(), RunningStatistics(), RunningStatistics()]
    for part, some in zip(parts[:2], torch.split(values, [18, 12]), strict=True):
        part.add(some)
    both = parts[2].merge(parts[0]).merge(parts[1]).statistics()
    whole = RunningStatistics()
    whole.add(values)
    for name, value in vars(whole.statistics()).items():
        assert torch.allclose(torch.as_tensor(getattr(both, name)), torch.as_tensor(value))


def test_merged_samples_are_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(statistics_recorder, "SAMPLE", 16)
    total = RunningStatistics()
    for _ in range(5):
        part = RunningStatistics()
        part.add(torch.rand(15, 2))
        total = total.merge(part)
    assert total.count == 75
    assert len(total.sample) <= 16
