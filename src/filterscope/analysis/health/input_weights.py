"""A permutation test for whether a kernel weighs its input channels unevenly."""

from dataclasses import dataclass

import torch
from scipy.stats import false_discovery_control
from torch import Tensor

from filterscope.analysis.health.classes import permutation_p

INPUTS, POSITIONS = 8, 4  # with fewer input channels or weights for each, the test misses many real filters


@dataclass(frozen=True, kw_only=True)
class Weighing:
    """How the filters of a layer weigh their input channels, tensors with one entry per filter.

    Attributes:
        share: share of the variance of the squared weights that lies between input channels, 0 to 1.
        p: permutation p-value of `share`.
        uneven: Benjamini–Hochberg's decision over the layer.
        testable: whether the kernels are large enough to find most real filters; if not, an `uneven` that is False
            means nothing.
    """

    share: Tensor
    p: Tensor
    uneven: Tensor
    testable: bool


def weighing(kernels: Tensor, *, level: float = 0.05) -> Weighing:
    """Test every filter of a layer for uneven weights of its input channels.

    The null hypothesis is that the weights are exchangeable over input channels and positions, as initial weights are.
    It sees what the test for spatial structure leaves out: that one permutes each channel by itself.

    Args:
        kernels: `(filters, inputs, kh, kw)`.
        level: false-discovery rate.
    """
    inputs, positions = kernels.shape[1], kernels[0, 0].numel()
    if inputs == 1 or positions == 1:
        nothing = torch.zeros(len(kernels))
        return Weighing(share=nothing, p=nothing + 1, uneven=nothing > 0, testable=False)
    energy = kernels.detach().cpu().double().flatten(2).square()
    energy = energy - energy.mean((1, 2), keepdim=True)
    total = energy.square().sum((1, 2))
    share = (positions * energy.mean(2).square().sum(1) / total.clamp_min(1e-300)).clamp(0, 1)
    spread = energy.pow(4).sum((1, 2)) / total.square().clamp_min(1e-300)
    p = permutation_p(share, spread, torch.full((inputs,), float(positions), dtype=torch.float64))
    p = torch.where(total > 0, p, 1.0)
    return Weighing(
        share=share,
        p=p,
        uneven=torch.from_numpy(false_discovery_control(p.numpy())) <= level,
        testable=inputs >= INPUTS and positions >= POSITIONS,
    )
