"""The activity of filters on images: dead, dormant, how often active, and how correlated."""

from dataclasses import dataclass

import torch
from torch import Tensor

from filterscope.analysis.health.running_sums import RunningSums
from filterscope.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Activity:
    """The activity of a layer's filters, tensors with one entry per filter.

    Attributes:
        images: number of images.
        dead: whether the filter is never positive.
        apoz: share of outputs that are not positive (Hu et al. 2016), at sampled spatial positions.
        dormancy: mean rectified output as a multiple of the layer's mean (Sokar et al. 2023; τ-dormant means ≤ τ).
        mean: of the responses over the images.
        deviation: standard deviation of the responses over the images.
        correlation: `(filters, filters)`, of rectified outputs at the same position; 0 if a filter never changes.
    """

    images: int
    dead: Tensor
    apoz: Tensor
    dormancy: Tensor
    mean: Tensor
    deviation: Tensor
    correlation: Tensor


def activity(sums: RunningSums) -> Activity:
    """Return the activity of a layer's filters.

    Raises:
        UserError: no image was added to the sums.
    """
    images = int(sums.images)
    if images == 0:
        raise UserError("the activity of filters needs at least one image")
    mean = sums.powers[0] / images
    variance = (sums.powers[1] / images - mean.square()).clamp_min(0)
    return Activity(
        images=images,
        dead=~(sums.powers[0] > 0),
        apoz=1 - sums.positive / sums.samples,
        dormancy=mean / mean.mean().clamp_min(1e-300),
        mean=mean,
        deviation=variance.sqrt(),
        correlation=_correlation(sums),
    )


def _correlation(sums: RunningSums) -> Tensor:
    mean = sums.sums / sums.samples
    covariance = sums.products / sums.samples - torch.outer(mean, mean)
    variance = covariance.diagonal().clamp_min(0)
    # Rounding leaves a constant filter a variance of this size.
    variance = torch.where(variance > 1e-9 * mean.square(), variance, torch.inf)
    return (covariance / torch.outer(variance, variance).sqrt()).clamp(-1, 1)
