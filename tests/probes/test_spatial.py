"""What maps come to over their places, against the plain formula."""

import pytest
import torch

from filterscope.probes import spatial
from filterscope.probes.spatial import rectified_mean, rectified_mean_and_count


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(5, 7, 9, 4), (3, 2, 1, 1), (4, 64, 30, 30)])
def test_means_and_counts_are_those_of_the_rectified_maps(monkeypatch, shape, layout, dtype):
    monkeypatch.setattr(spatial, "_PIECE", 3 * shape[1] * shape[2] * shape[3] - 1)  # pieces of two images and one
    maps = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype).contiguous(memory_format=layout)
    kept = maps.clone()
    wanted = maps.double().clamp_min(0).mean((2, 3))
    means, counts = rectified_mean_and_count(maps)
    assert torch.allclose(means.double(), wanted, rtol=1e-5, atol=1e-7)
    assert torch.equal(counts, (maps > 0).sum((2, 3)).double())
    assert torch.allclose(rectified_mean(maps.clone()).double(), wanted, rtol=1e-5, atol=1e-7)
    assert torch.equal(maps, kept)


def test_a_mean_is_computed_once_for_an_output_and_anew_for_another():
    maps = torch.randn(2, 3, 4, 4)
    first = rectified_mean(maps)
    assert rectified_mean(maps) is first
    assert torch.equal(rectified_mean(2 * maps), 2 * first)
