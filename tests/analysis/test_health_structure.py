"""The test for structure is calibrated under its null, finds every frequency, and declines too small kernels."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import kstest, rankdata
from torch import Tensor, nn

from filterscope.analysis.health.structure import has_power, structure, variance_entropy
from filterscope.errors import UserError

REAL = os.environ.get("FILTERSCOPE_REAL")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def auroc(high: Tensor, low: Tensor) -> float:
    ranks = rankdata(torch.cat([high, low]).numpy())
    return float((ranks[: len(high)].sum() - len(high) * (len(high) + 1) / 2) / (len(high) * len(low)))


def shuffled(kernels: Tensor) -> Tensor:
    flat = kernels.flatten(2)
    order = torch.rand(flat.shape, generator=torch.Generator().manual_seed(1)).argsort(2)
    return flat.gather(2, order).view_as(kernels)


@pytest.mark.parametrize("initialise", [nn.init.kaiming_uniform_, nn.init.kaiming_normal_, nn.init.xavier_uniform_])
@pytest.mark.parametrize(("slices", "size", "together"), [(3, 3, True), (3, 11, True), (16, 5, False), (32, 3, False)])
def test_random_filters_count_as_structured_at_the_nominal_rate(initialise, slices, size, together):
    torch.manual_seed(3)
    kernels = initialise(torch.empty(1500, slices, size, size))
    rate = (structure(kernels, together=together, draws=199).p < 0.05).float().mean()
    assert 0.05 - 0.018 < rate < 0.05 + 0.018  # over three standard errors of 1500 filters


def test_p_is_uniform_for_random_filters():
    p = structure(noise(1000, 8, 3, 3), draws=499).p.numpy()
    p = p - np.random.default_rng(0).uniform(0, 1 / 500, p.shape)  # spreads the grid that 499 draws make
    assert kstest(p, "uniform").pvalue > 0.01


def test_slices_of_very_different_size_do_not_break_the_null():
    kernels = noise(1000, 16, 3, 3) * torch.logspace(0, -4, 16)[:, None, None]
    assert 0.03 < (structure(kernels).p < 0.05).float().mean() < 0.075


@pytest.mark.parametrize("wave", ["edge", "blob", "grating", "checkerboard"])
def test_structure_of_every_frequency_is_found(wave):
    y, x = torch.meshgrid(torch.arange(5.0) - 2, torch.arange(5.0) - 2, indexing="ij")
    pattern = {"edge": x, "blob": (-(x**2 + y**2) / 3).exp(), "grating": (-1.0) ** x, "checkerboard": (-1.0) ** (x + y)}
    kernels = pattern[wave] / pattern[wave].std() + 0.3 * noise(20, 6, 5, 5)
    assert structure(kernels).structured.all()


def test_grey_noise_of_colour_slices_is_noise():
    kernels = noise(400, 1, 7, 7).expand(-1, 3, -1, -1)
    assert 0.02 < (structure(kernels, together=True).p < 0.05).float().mean() < 0.09


def test_scale_and_offset_change_nothing():
    kernels = noise(10, 4, 5, 5)
    plain, changed = structure(kernels), structure(7 * kernels + 3)
    assert torch.allclose(plain.concentration, changed.concentration, rtol=1e-4)
    assert torch.allclose(plain.p, changed.p, atol=2 / 300)  # rounding may decide one draw


def test_one_structured_filter_among_512_is_found():
    kernels = noise(512, 32, 3, 3)
    kernels[7] = torch.arange(3.0)
    found = structure(kernels)
    assert found.structured[7]
    assert found.structured.sum() <= 2


def test_constant_and_zero_kernels_are_not_structured():
    kernels = torch.stack([torch.zeros(8, 5, 5), torch.full((8, 5, 5), 0.3)])
    assert not structure(kernels).structured.any()


def test_small_kernels_are_not_judged():
    assert not has_power((64, 3, 3, 3))
    assert not structure(noise(64, 10, 1, 1)).testable
    assert has_power((64, 3, 11, 11))
    assert has_power((128, 64, 3, 3))


def test_variance_entropy_of_random_slices_is_near_its_maximum_and_of_one_pattern_zero():
    assert variance_entropy(noise(64, 64, 3, 3)) == pytest.approx(math.log10(9), abs=2e-3)
    assert variance_entropy(noise(64, 64, 1, 1) * torch.arange(9.0).view(3, 3)) == pytest.approx(0, abs=1e-6)


def test_wrong_input_is_one_clear_line():
    with pytest.raises(UserError, match=r"kernels must be \(filters, slices, kh, kw\)"):
        structure(torch.zeros(10, 20))
    with pytest.raises(UserError, match="draws=9"):
        structure(noise(4, 4, 3, 3), draws=9)


@pytest.mark.real
@pytest.mark.skipif(REAL is None, reason="FILTERSCOPE_REAL is not set")
def test_real_alexnet_filters_differ_from_random_and_from_shuffled_ones():
    weights = torch.load(Path(str(REAL)) / "weights" / "alexnet_features.pth", weights_only=True)
    for i, kernels in enumerate(tensor for tensor in weights.values() if tensor.dim() == 4):
        z = structure(kernels, together=i == 0, draws=199).z
        for null in (torch.randn(kernels.shape, generator=torch.Generator().manual_seed(0)), shuffled(kernels)):
            assert auroc(z, structure(null, together=i == 0, draws=199).z) >= 0.99
