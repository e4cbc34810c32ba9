"""What maps come to over their places, against the plain formula."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from filterscope.probes import spatial
from filterscope.probes.spatial import looking, rectified_mean, spread


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(5, 7, 9, 4), (3, 2, 1, 1), (4, 64, 30, 30), (1, 2, 5, 255)])
def test_means_are_those_of_the_rectified_maps(monkeypatch, shape, layout, dtype):
    monkeypatch.setattr(spatial, "_PIECE", 3 * shape[1] * shape[2] * shape[3] - 1)  # pieces of two images and one
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
    rows, columns = spread(*size, most=8).div(size[1], rounding_mode="floor"), spread(*size, most=8) % size[1]
    assert len(set(spread(*size, most=8).tolist())) == 8
    for each, extent in ((rows, size[0]), (columns, size[1])):
        quarters = torch.bincount(each * 4 // extent, minlength=4)
        assert quarters.tolist() == pytest.approx([2, 2, 2, 2], abs=1)
    assert spread(2, 4, most=8).tolist() == list(range(8))


class Branching(nn.Module):
    """One convolution before its ReLU, one whose ReLU another takes first, one without, and all of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.relu = nn.Conv2d(3, 4, 3), nn.ReLU()
        self.second, self.other, self.third = nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)

    def forward(self, images: Tensor) -> Tensor:
        """Run the ReLU behind the second convolution on something else."""
        maps = self.relu(self.first(images))
        return self.third(self.relu(self.second(maps)) + self.other(2 * maps[:, :, 1:-1, 1:-1]))


@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-3)])
def test_what_is_looked_at_is_what_the_modules_put_out_whoever_rectifies_it(dtype, off):
    torch.manual_seed(0)
    network: Any = Branching().to(dtype).to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 20, 20).to(dtype).to(memory_format=torch.channels_last)
    modules = {"first": network.first, "second": network.second, "third": network.third}
    seen: dict[str, Tensor] = {}
    means: dict[str, Tensor] = {}

    def look(name: str, maps: Tensor) -> None:
        seen[name], means[name] = maps, rectified_mean(maps)

    plain: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(lambda _m, _i, maps, name=name: plain.update({name: maps}))
        for name, module in modules.items()
    ]
    with torch.no_grad(), looking(network, modules, look) as finish:
        for _ in range(2):
            network(images)
            assert set(seen) == {"first"}  # its ReLU came next; the others wait
            finish()
            assert all(seen[name] is plain[name] for name in modules)
            for name, maps in plain.items():
                wanted = maps.double().clamp_min(0).mean((2, 3))
                assert torch.allclose(means[name].double(), wanted, rtol=off, atol=1e-7)
            seen.clear()
    for handle in handles:
        handle.remove()
    assert not any(module._forward_hooks for module in network.modules())
