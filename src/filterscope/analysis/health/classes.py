"""Class information: how much of a filter's response the class of the image explains."""

from dataclasses import dataclass

import torch
from scipy.stats import beta
from torch import Tensor

from filterscope.analysis.health.activity import RunningSums
from filterscope.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ClassInformation:
    """The class information of a layer's filters, tensors with one entry per filter.

    Attributes:
        eta_squared: share of the responses' variance that lies between classes.
        p: permutation p-value of `eta_squared`.
        selectivity: class selectivity index (Morcos et al. 2018), from 0 for equal classes to 1 for a single class.
    """

    eta_squared: Tensor
    p: Tensor
    selectivity: Tensor


def class_information(sums: RunningSums) -> ClassInformation:
    """Return the class information of a layer's filters.

    The null hypothesis is that labels are exchangeable over images. The mean and variance of η² over all permutations
    follow exactly from the responses' second and fourth moments, and a beta distribution with this mean and variance
    gives p (Pitman 1938). No permutations are drawn, and p is right for sparse responses, where the F-test is not.

    Raises:
        UserError: there are fewer than two classes, or less than four images more than classes.
    """
    sizes = sums.class_sizes
    present = sizes > 0
    images, classes = int(sizes.sum()), int(present.sum())
    if not enough_images(sums):
        raise UserError(
            f"class information needs images of at least two classes and four images more than classes, "
            f"not {images} labelled images of {classes} classes"
        )
    class_sums, sizes = sums.class_sums[present], sizes[present]
    mean = class_sums.sum(0) / images
    second, fourth = _central_sums(sums.powers, images)
    between = ((class_sums - sizes[:, None] * mean).square() / sizes[:, None]).sum(0)
    varies = second > 1e-12 * (second + images * mean.square())
    eta_squared = torch.where(varies, between / second.clamp_min(1e-300), 0.0).clamp(0, 1)
    spread = torch.where(varies, fourth / second.square().clamp_min(1e-300), 1 / images)
    p = torch.where(varies, permutation_p(eta_squared, spread, sizes), 1.0)
    return ClassInformation(eta_squared=eta_squared, p=p, selectivity=_selectivity(class_sums / sizes[:, None]))


def enough_images(sums: RunningSums) -> bool:
    """Return whether there are labelled images of at least two classes, and four images more than classes."""
    images, classes = int(sums.class_sizes.sum()), int((sums.class_sizes > 0).sum())
    return classes >= 2 and images >= classes + 4


def top_classes(values: Tensor, labels: Tensor, most: int) -> list[list[tuple[int, float]]]:
    """Return for each filter up to `most` classes with the largest mean values, each with its mean, the largest first.

    Args:
        values: of the filters for images, `(images, filters)`.
        labels: `(images,)`.
        most: the largest number of classes.
    """
    classes = torch.unique(labels)
    means = torch.stack([values[labels == label].mean(0) for label in classes])
    best = means.topk(min(most, len(classes)), dim=0)
    rows = zip(classes[best.indices].T.tolist(), best.values.T.tolist(), strict=True)
    return [list(zip(*row, strict=True)) for row in rows]


def _central_sums(powers: Tensor, images: int) -> tuple[Tensor, Tensor]:
    first, second, third, fourth = powers
    mean = first / images
    squares = second - images * mean.square()
    fourths = fourth - 4 * mean * third + 6 * mean.square() * second - 3 * images * mean.pow(4)
    return squares.clamp_min(0), fourths.clamp_min(0)


def _selectivity(means: Tensor) -> Tensor:
    highest = means.amax(0)
    others = (means.sum(0) - highest) / (len(means) - 1)
    return (highest - others) / (highest + others).clamp_min(1e-300)


def permutation_p(eta_squared: Tensor, spread: Tensor, sizes: Tensor) -> Tensor:
    """Return the probability that permuted values reach η², from a beta distribution with the exact moments.

    Args:
        eta_squared: share of the values' variance that lies between groups.
        spread: Σx⁴/(Σx²)² of the centred values.
        sizes: number of values in each group.
    """
    n = float(sizes.sum())
    mean = (len(sizes) - 1) / (n - 1)
    variance = (_mean_of_square(spread, sizes) - mean**2).clamp_min(1e-12)
    size = (mean * (1 - mean) / variance - 1).clamp_min(1e-3)
    return torch.from_numpy(beta.sf(eta_squared.numpy(), (mean * size).numpy(), ((1 - mean) * size).numpy()))


def _mean_of_square(spread: Tensor, sizes: Tensor) -> Tensor:
    """Return the mean of (η²)² over all permutations of centred responses with Σx² = 1 and Σx⁴ = `spread`."""
    n = float(sizes.sum())
    pairs, triples, quadruples = n * (n - 1), n * (n - 1) * (n - 2), n * (n - 1) * (n - 2) * (n - 3)
    # The means of x⁴, x³y, x²y², x²yz and xyzw over distinct images, by the power sums with Σx = 0.
    e4, e31, e22 = spread / n, -spread / pairs, (1 - spread) / pairs
    e211, e1111 = (2 * spread - 1) / triples, (3 - 6 * spread) / quadruples
    m = sizes[:, None]
    own = m * e4 + m * (m - 1) * (4 * e31 + 3 * e22 + (m - 2) * (6 * e211 + (m - 3) * e1111))
    classes = float(len(sizes))
    rest = n - classes  # Σ (m − 1)
    both = classes * (classes - 1)
    crossed = (classes - 1) * rest  # Σ over pairs of (m − 1)
    squared = rest**2 - (sizes - 1).square().sum()  # Σ over pairs of (m − 1)(q − 1)
    between = both * e22 + 2 * crossed * e211 + squared * e1111
    return (own / m.square()).sum(0) + between
