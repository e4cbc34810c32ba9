"""What maps come to over their places, against the plain formula."""

import pytest
import torch

from filterscope.analysis import reductions
from filterscope.analysis.reductions import rectified_mean, spread_positions


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(5, 7, 9, 4), (3, 2, 1, 1), (4, 64, 30, 30), (1, 2, 5, 255)])
def test_means_are_those_of_the_rectified_maps(monkeypatch, shape, layout, dtype):
    monkeypatch.setattr(reductions, "_PIECE", 3 * shape[1] * shape[2] * shape[3] - 1)  # pieces of two images and one
    maps = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype).contiguous(memory_format=layout)
    kept = maps.clone()
    wanted = maps.double().clamp_min(0).mean((2, 3))
    assert torch.allclose(rectified_mean(maps).double(), wanted, rtol=1e-5, atol=1e-7)
    assert torch.equal(maps, kept)


def test_a_mean_is_computed_once_for_an_output_and_anew_for_another():
    maps = torch.randn(2, 3, 4, 4)
    first = rectified_mean(maps)
    assert rectified_mean(maps) is first
    assert torch.equal(rectified_mean(2 * maps), 2 * first)


@pytest.mark.parametrize("size", [(13, 13), (55, 55), (224, 224), (6, 40)])
def test_positions_are_spread_over_rows_and_columns(size):
    rows, columns = (
        spread_positions(*size, most=8).div(size[1], rounding_mode="floor"),
        spread_positions(*size, most=8) % size[1],
    )
    assert len(set(spread_positions(*size, most=8).tolist())) == 8
    for each, extent in ((rows, size[0]), (columns, size[1])):
        quarters = torch.bincount(each * 4 // extent, minlength=4)
        assert quarters.tolist() == pytest.approx([2, 2, 2, 2], abs=1)
    assert spread_positions(2, 4, most=8).tolist() == list(range(8))
