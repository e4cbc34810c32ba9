"""Structure of a kernel: does it matter where its weights stand?

The statistic is the spectral concentration: a kernel's energy over the spatial frequencies of the discrete cosine
transform (the constant one left out), and of its shares the sum of squares times their number. It is 1 where the
energy is spread evenly and grows to the number of frequencies for a pure wave of any frequency, so edges and blobs
(low), gratings and checkerboards (high) count alike; Moran's I, a contrast of low against high, misses the latter.

The null says that a slice's weights (one input channel's) are exchangeable over positions. Every slice is permuted on
its own: independent initial weights are exchangeable so, and a shuffle that moves all slices together would keep what
deep filters have most of, one spatial pattern shared by many slices. The colours of an image are the exception: they
vary together, so even noise is grey and its three slices alike; there (`together`) one permutation moves all of them.
"""

import math
from dataclasses import dataclass

import torch
from scipy.stats import false_discovery_control
from torch import Tensor

from filterscope.errors import UserError

POWER = 32.0  # (positions − 1)·√slices at which about eight in ten real filters are found; benchmarks/health.py
CHUNK = 1 << 22  # floats in a work buffer
TILE = 128  # filters


@dataclass(frozen=True, kw_only=True)
class Structure:
    """The structure of a layer's filters, tensors of one entry per filter.

    `concentration` is 1 for even energy; `z` is its distance from its own null in standard deviations; `p` is the
    exact permutation p-value; `structured` is Benjamini–Hochberg's decision over the layer. Where `testable` is False
    the kernels are too small for the test to find most real filters, and `structured` being False means nothing.
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
        together: permute all slices alike; right for the colours of an image.
        draws: of the null; filters that none of them reaches are drawn again, so often that they can be told apart
            from a whole layer of noise.
        level: of the false-discovery rate.
        seed: of the draws.

    Raises:
        UserError: `kernels` has another shape, or `draws` is too small for the level.
    """
    if kernels.dim() != 4:
        raise UserError(f"kernels must be (filters, slices, kh, kw), not of shape {tuple(kernels.shape)}")
    if draws < math.ceil(1 / level) - 1:
        raise UserError(f"draws={draws} can give no p below {level}; at least {math.ceil(1 / level) - 1} are needed")
    slices, frequencies = _prepared(kernels), _frequencies(*kernels.shape[2:])
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
    # Filters that no draw reached are drawn again until their p can be small enough for as few as they are.
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


def variance_entropy(kernels: Tensor) -> float:
    """Return how evenly a layer's slices use the dimensions of the kernel space, 0 to log10(kh·kw).

    The entropy (base 10) of the explained variances of the slices' principal components: near the upper end for
    random slices, low where few patterns make up all of them. Gavrikov & Keuper, CNN Filter DB, CVPR 2022.
    """
    # In double precision before the product: float32 sums differ between processors by more than small shares.
    slices = kernels.detach().cpu().double().flatten(2).flatten(0, 1)
    centred = slices - slices.mean(0)
    variances = torch.linalg.eigvalsh(centred.T @ centred).clamp_min(0)
    shares = variances / variances.sum().clamp_min(1e-300)
    return float(-(shares * shares.clamp_min(1e-300).log10()).sum())


def _prepared(kernels: Tensor) -> Tensor:
    flat = kernels.detach().cpu().float().flatten(2)
    flat = flat - flat.mean(2, keepdim=True)
    size: Tensor = torch.linalg.vector_norm(flat, dim=(1, 2), keepdim=True, dtype=torch.float64)
    flat = flat * size.clamp_min(torch.finfo(torch.float32).tiny).reciprocal().float()
    return flat.transpose(0, 1).contiguous()  # (slices, filters, positions), one unit of energy per filter


def _frequencies(height: int, width: int) -> Tensor:
    """Return the two-dimensional cosines without the constant one, `(positions − 1, positions)`, orthonormal."""
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
    for first in range(0, filters, TILE):  # few at a time stay in the processor's cache from product to sum
        sums = energy[first : first + TILE]
        product = torch.empty_like(sums)
        for channel in range(channels):
            torch.mm(slices[channel, first : first + TILE], waves[min(channel, len(waves) - 1)], out=product)
            sums.addcmul_(product, product)
    return _unevenness(energy.view(filters, -1, positions - 1))


def _unevenness(energy: Tensor) -> Tensor:
    """Return how unevenly one unit of energy is spread over frequencies, `(…, frequencies)` → `(…)`; 1 where evenly."""
    return energy.square().sum(-1) * energy.shape[-1]


def _null(slices: Tensor, waves: Tensor, *, draws: int, together: bool, generator: torch.Generator) -> Tensor:
    count, positions = 1 if together else len(slices), slices.shape[2]
    step = max(1, 4 * CHUNK // (count * positions * len(waves)))
    drawn = []
    for start in range(0, draws, step):
        size = (count, min(step, draws - start), positions)
        orders = torch.rand(size, generator=generator).argsort(2)
        # Moving the waves' positions about is moving the weights, and serves all filters at once.
        moved = waves.T[orders].transpose(1, 2).reshape(count, positions, -1)
        drawn.append(_concentration(slices, moved))
    return torch.cat(drawn, dim=1)


def _hits(observed: Tensor, null: Tensor) -> Tensor:
    """Return how many draws reach the observed concentration."""
    # Rounding must not tell apart arrangements that are mirror images of each other.
    return (null >= observed[:, None] * (1 - 1e-5)).sum(1)
