"""A permutation test for the structure of a kernel: whether the arrangement of its weights differs from chance.

The statistic is the spectral concentration: the shares of a kernel's energy in the spatial frequencies of the discrete
cosine transform (without the constant one), squared, summed and multiplied by the number of frequencies. It is 1 for
energy that is spread evenly and equals the number of frequencies for a pure wave of any frequency. Edges and blobs
(low frequencies) and gratings and checkerboards (high ones) count alike; Moran's I, which contrasts low with high
frequencies, misses the latter.

The null hypothesis is that the weights of a slice (of one input channel) are exchangeable over positions. Every slice
is permuted separately: independent initial weights are exchangeable in this way, and moving all slices together would
keep one spatial pattern that many slices share, which is the usual structure of deep filters. The colour channels of
an image are the exception: they vary together, so that even the three slices of noise are alike, and one permutation
moves all of them (`together`).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.stats import false_discovery_control
from torch import Tensor

from filterscope.errors import UserError

# (positions − 1)·√slices above which the test finds about eight of ten real filters; see benchmarks/health.py
POWER = 32.0
LARGEST_SIDE = 12  # of a tested kernel; the test's time grows with the fourth power
CHUNK = 1 << 22  # floats in a work buffer
TILE = 128  # filters


@dataclass(frozen=True, kw_only=True)
class Structure:
    """The structure of a layer's filters, tensors with one entry per filter.

    Attributes:
        concentration: the statistic; 1 for evenly spread energy.
        z: its distance from the filter's null distribution in standard deviations.
        p: exact permutation p-value.
        structured: Benjamini–Hochberg's decision over the layer.
        testable: whether the kernels are large enough to find most real filters; if not, a `structured` that is False
            means nothing.
    """

    concentration: Tensor
    z: Tensor
    p: Tensor
    structured: Tensor
    testable: bool


def structure(
    kernels: Tensor,
    *,
    together: bool = False,
    draws: int = 299,
    level: float = 0.05,
    seed: int = 0,
) -> Structure:
    """Test every filter of a layer for structure.

    Args:
        kernels: `(filters, slices, kh, kw)`.
        together: move all slices by the same permutation, for the colour channels of images.
        draws: number of permutations; for filters that no permutation reaches, more are drawn until they can be
            distinguished from noise in a whole layer.
        level: false-discovery rate.
        seed: of the permutations.

    Raises:
        UserError: `kernels` has another shape, or `draws` is too small for the level.
    """
    if kernels.dim() != 4:
        raise UserError(f"kernels must be (filters, slices, kh, kw), not of shape {tuple(kernels.shape)}")
    if draws < math.ceil(1 / level) - 1:
        raise UserError(f"draws={draws} can give no p below {level}; at least {math.ceil(1 / level) - 1} are needed")
    reduced = _reduced(kernels)
    slices, frequencies = _normalized_slices(reduced), _frequencies(*reduced.shape[2:])
    filters = len(kernels)
    if len(frequencies) < 2:
        nothing = torch.zeros(filters)
        return Structure(concentration=nothing + 1, z=nothing, p=nothing + 1, structured=nothing > 0, testable=False)
    observed = _unevenness((slices @ frequencies.T).square_().sum(0))
    first = torch.Generator().manual_seed(seed)
    null = _null(slices, frequencies, draws=draws, together=together, generator=first)
    generator = torch.Generator().manual_seed(seed + 1)
    hits, drawn = _hits(observed, null), torch.full((filters,), draws)
    left, total = (hits == 0).nonzero()[:, 0], draws
    # More permutations for filters that none has reached, until p can be small enough for so few filters.
    while 0 < len(left) * level / filters < 1 / (total + 1):
        more = math.ceil(filters / (level * len(left)))
        again = _null(slices[:, left], frequencies, draws=more, together=together, generator=generator)
        total += more
        hits[left], drawn[left] = _hits(observed[left], again), total
        left = left[hits[left] == 0]
    p = (1 + hits) / (1 + drawn)
    return Structure(
        concentration=observed,
        z=(observed - null.mean(1)) / null.std(1).clamp_min(1e-6),
        p=p,
        structured=torch.from_numpy(false_discovery_control(p.double().numpy())) <= level,
        testable=has_power(kernels.shape),
    )


def has_power(shape: tuple[int, ...] | torch.Size) -> bool:
    """Return whether the test finds most real filters among kernels of shape `(filters, slices, kh, kw)`."""
    return bool((shape[2] * shape[3] - 1) * math.sqrt(shape[1]) >= POWER)


def _reduced(kernels: Tensor) -> Tensor:
    """Return kernels of more than `LARGEST_SIDE` a side as means of equal blocks.

    Means of exchangeable weights are exchangeable, so p stays exact; waves shorter than a block are no longer seen.
    """
    blocks = [math.ceil(side / LARGEST_SIDE) for side in kernels.shape[2:]]
    if blocks == [1, 1]:
        return kernels
    starts = [side % block // 2 for side, block in zip(kernels.shape[2:], blocks, strict=True)]
    return F.avg_pool2d(kernels.detach().cpu().float()[..., starts[0] :, starts[1] :], blocks)


def variance_entropy(kernels: Tensor) -> float:
    """Return how evenly a layer's slices are spread over the dimensions of kernel space, 0 to log10(kh·kw).

    It is the entropy (base 10) of the explained variances of the slices' principal components: high for random slices,
    low if few patterns explain all of them. Source: Gavrikov & Keuper, CNN Filter DB, CVPR 2022.
    """
    # In double precision before the product: float32 sums differ between processors by more than small shares.
    slices = kernels.detach().cpu().double().flatten(2).flatten(0, 1)
    slices = slices[slices.isfinite().all(1)]
    if not len(slices):
        return math.nan
    centred = slices - slices.mean(0)
    variances = torch.linalg.eigvalsh(centred.T @ centred).clamp_min(0)
    shares = variances / variances.sum().clamp_min(1e-300)
    return float(-(shares * shares.clamp_min(1e-300).log10()).sum())


def _normalized_slices(kernels: Tensor) -> Tensor:
    flat = kernels.detach().cpu().float().flatten(2)
    flat = torch.where(flat.isfinite().flatten(1).all(1)[:, None, None], flat, 0)  # without structure
    flat = flat - flat.mean(2, keepdim=True)
    size: Tensor = torch.linalg.vector_norm(flat, dim=(1, 2), keepdim=True, dtype=torch.float64)
    flat = flat * size.clamp_min(torch.finfo(torch.float32).tiny).reciprocal().float()
    return flat.transpose(0, 1).contiguous()  # (slices, filters, positions), one unit of energy per filter


def _frequencies(height: int, width: int) -> Tensor:
    """Return the orthonormal two-dimensional cosines without the constant one, `(positions − 1, positions)`."""
    waves: Tensor = torch.einsum("ui,vj->uvij", _cosines(height), _cosines(width))
    return waves.reshape(height * width, -1)[1:].float()


def _cosines(size: int) -> Tensor:
    index = torch.arange(size, dtype=torch.float64)
    waves = torch.cos(math.pi * (index + 0.5) * index[:, None] / size) * math.sqrt(2 / size)
    waves[0] /= math.sqrt(2)
    return waves


def _concentration(slices: Tensor, waves: Tensor) -> Tensor:
    """Return `(filters, draws)` from waves `(slices or 1, positions, draws · frequencies)`."""
    channels, filters, positions = slices.shape
    energy = torch.zeros(filters, waves.shape[2])
    for first in range(0, filters, TILE):  # small tiles stay in the processor's cache
        sums = energy[first : first + TILE]
        product = torch.empty_like(sums)
        for channel in range(channels):
            torch.mm(slices[channel, first : first + TILE], waves[min(channel, len(waves) - 1)], out=product)
            sums.addcmul_(product, product)
    return _unevenness(energy.view(filters, -1, positions - 1))


def _unevenness(energy: Tensor) -> Tensor:
    """Return the concentration of one unit of energy, `(…, frequencies)` → `(…)`; 1 if it is spread evenly."""
    return energy.square().sum(-1) * energy.shape[-1]


def _null(slices: Tensor, waves: Tensor, *, draws: int, together: bool, generator: torch.Generator) -> Tensor:
    """Return the concentration of each filter after random permutations of its weights, `(filters, draws)`."""
    count, positions = 1 if together else len(slices), slices.shape[2]
    step = max(1, 4 * CHUNK // (count * positions * len(waves)))
    drawn = []
    for start in range(0, draws, step):
        size = (count, min(step, draws - start), positions)
        orders = torch.rand(size, generator=generator).argsort(2)
        # Permuting the waves is equivalent to permuting the weights, and is shared by all filters.
        moved = waves.T[orders].transpose(1, 2).reshape(count, positions, -1)
        drawn.append(_concentration(slices, moved))
    return torch.cat(drawn, dim=1)


def _hits(observed: Tensor, null: Tensor) -> Tensor:
    """Return how many permutations reach the observed concentration."""
    # Rounding must not distinguish arrangements that are mirror images of each other.
    return (null >= observed[:, None] * (1 - 1e-5)).sum(1)
