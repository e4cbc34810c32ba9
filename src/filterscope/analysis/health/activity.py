"""What filters do on images: dead, dormant, how often and how alike."""

from dataclasses import dataclass

import torch
from torch import Tensor

from filterscope.analysis.health.running_sums import RunningSums
from filterscope.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Activity:
    """What a tally says of each filter, tensors of one entry per filter.

    `dead`: never positive. `apoz`: the share of outputs that are not positive (Hu et al. 2016), at
    some places of each map. `dormancy`: the mean
    rectified output as a multiple of the layer's mean (Sokar et al. 2023; τ-dormant means ≤ τ). `mean` and `deviation`
    are those of the responses over images. `correlation` is `(filters, filters)`, of rectified outputs at the same
    place; 0 where a filter never changes.
    """

    images: int
    dead: Tensor
    apoz: Tensor
    dormancy: Tensor
    mean: Tensor
    deviation: Tensor
    correlation: Tensor


def activity(tally: RunningSums) -> Activity:
    """Return the readings of a tally.

    Raises:
        UserError: it has seen no image.
    """
    images = int(tally.images)
    if images == 0:
        raise UserError("no images were shown to the network: its activity needs at least one")
    mean = tally.powers[0] / images
    variance = (tally.powers[1] / images - mean.square()).clamp_min(0)
    return Activity(
        images=images,
        dead=~(tally.powers[0] > 0),
        apoz=1 - tally.positive / tally.places,
        dormancy=mean / mean.mean().clamp_min(1e-300),
        mean=mean,
        deviation=variance.sqrt(),
        correlation=_correlation(tally),
    )


def _correlation(tally: RunningSums) -> Tensor:
    mean = tally.sums / tally.places
    covariance = tally.products / tally.places - torch.outer(mean, mean)
    variance = covariance.diagonal().clamp_min(0)
    # Rounding leaves a variance of this size to a filter that never changes.
    variance = torch.where(variance > 1e-9 * mean.square(), variance, torch.inf)
    return (covariance / torch.outer(variance, variance).sqrt()).clamp(-1, 1)
