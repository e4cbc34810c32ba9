"""The activity of filters on images, from sums that are added batch by batch and over all ranks."""

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric

from filterscope.errors import UserError
from filterscope.runtime.processes import world_size

POSITIONS = 8  # sampled spatial positions of each feature map


@dataclass(frozen=True)
class BatchActivity:
    """The activity of a layer's filters in one batch; outputs are rectified first.

    Attributes:
        responses: the mean of each feature map, `(images, filters)`.
        samples: values at up to `POSITIONS` spatial positions of each map, `(images · positions, filters)`.
    """

    responses: Tensor
    samples: Tensor

    @classmethod
    def of_outputs(cls, outputs: Tensor) -> "BatchActivity":
        """Return the activity in outputs `(images, filters, h, w)`."""
        outputs = outputs.detach()
        at = sample_positions(*outputs.shape[2:], most=POSITIONS).to(outputs.device)
        samples = outputs.flatten(2).index_select(2, at).float().relu().transpose(1, 2).flatten(0, 1)
        return cls(responses=outputs.relu().mean((2, 3), dtype=torch.float32), samples=samples)


class RunningSums(Metric):
    """Sums over everything that one layer's filters output, rectified, in float64.

    The *response* of a filter to an image is the mean of its rectified feature map.

    Attributes:
        images: number of images.
        powers: sums of the responses to the powers one to four, `(4, filters)`.
        class_sizes: number of images of each class, `(classes,)`.
        class_sums: sums of the responses by class, `(classes, filters)`.
        samples: number of sampled values of each filter.
        positive: number of positive samples, `(filters,)`.
        sums: sums of the samples, `(filters,)`.
        products: sums of the products of two filters' samples, `(filters, filters)`.
    """

    full_state_update = False
    images: Tensor
    powers: Tensor
    class_sizes: Tensor
    class_sums: Tensor
    samples: Tensor
    positive: Tensor
    sums: Tensor
    products: Tensor

    def __init__(self, *, filters: int, classes: int) -> None:
        super().__init__()
        shapes: dict[str, tuple[int, ...]] = {
            "images": (),
            "powers": (4, filters),
            "class_sizes": (classes,),
            "class_sums": (classes, filters),
            "samples": (),
            "positive": (filters,),
            "sums": (filters,),
            "products": (filters, filters),
        }
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, batch: BatchActivity, labels: Tensor | None = None) -> None:
        """Add a batch, with the images' labels `(images,)` if they are known."""
        responses, samples = batch.responses.double().cpu(), batch.samples
        squares = responses.square()
        self.images += len(responses)
        self.powers += torch.stack([each.sum(0) for each in (responses, squares, squares * responses, squares**2)])
        if labels is not None and len(self.class_sizes):
            labels = labels.cpu()
            self.class_sizes += torch.bincount(labels, minlength=len(self.class_sizes)).double()
            self.class_sums.index_add_(0, labels, responses)
        self.samples += len(samples)
        self.positive += (samples > 0).sum(0).double().cpu()
        self.sums += samples.sum(0).double().cpu()
        self.products += (samples.T @ samples).double().cpu()

    def compute(self) -> dict[str, Tensor]:
        """Return the sums over all ranks, by name."""
        return {name: torch.as_tensor(state) for name, state in self.metric_state.items()}

    def sum_over_ranks(self) -> None:
        """Replace the sums with those of all ranks of a distributed run; every rank must call this."""
        if world_size() == 1:
            return
        if dist.get_backend() == "nccl":
            self.to(torch.device("cuda", torch.cuda.current_device()))
        self.sync()
        self.to("cpu")


@lru_cache
def sample_positions(height: int, width: int, *, most: int) -> Tensor:
    """Return up to `most` positions spread evenly over a feature map, as indices of the flattened map."""
    if height * width <= most:
        return torch.arange(height * width)
    # Evenly in one direction and by the golden ratio in the other, so that no row or column is preferred.
    steps = torch.arange(most, dtype=torch.float64)
    down, across = (steps + 0.5) / most * height, (steps + 0.5) * (5**0.5 - 1) / 2 % 1 * width
    return down.long() * width + across.long()


@dataclass(frozen=True, kw_only=True)
class Activity:
    """The activity of a layer's filters, tensors with one entry per filter.

    Attributes:
        images: number of images.
        dead: whether the filter is never positive.
        apoz: share of outputs that are not positive (Hu et al. 2016), at sampled spatial positions.
        dormancy: mean rectified output as a multiple of the layer's mean (Sokar et al. 2023; τ-dormant means ≤ τ).
        correlation: `(filters, filters)`, of rectified outputs at the same position; 0 if a filter never changes.
    """

    images: int
    dead: Tensor
    apoz: Tensor
    dormancy: Tensor
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
    return Activity(
        images=images,
        dead=~(sums.powers[0] > 0),
        apoz=1 - sums.positive / sums.samples,
        dormancy=mean / mean.mean().clamp_min(1e-300),
        correlation=_correlation(sums),
    )


def _correlation(sums: RunningSums) -> Tensor:
    mean = sums.sums / sums.samples
    covariance = sums.products / sums.samples - torch.outer(mean, mean)
    variance = covariance.diagonal().clamp_min(0)
    # Rounding leaves a constant filter a variance of this size.
    variance = torch.where(variance > 1e-9 * mean.square(), variance, torch.inf)
    return (covariance / torch.outer(variance, variance).sqrt()).clamp(-1, 1)
