"""The statistics of real images from a forward pass that runs anyway, in bounded memory and over all processes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from filterscope.analysis.hooks import recording_outputs
from filterscope.analysis.reductions import rectified_mean
from filterscope.analysis.synthesis.trust import ActivationStatistics, LayerStatistics, quantiles
from filterscope.models.classifier import Classifier

SAMPLE = 1024  # images, at most, that quantiles are taken from


@dataclass
class Responses:
    """What one layer made of many images: exact largest, mean and spread, and every `stride`-th response."""

    count: int = 0
    largest: Tensor = field(default_factory=lambda: torch.empty(0))
    sums: Tensor = field(default_factory=lambda: torch.zeros(2, 1, dtype=torch.float64))
    sample: Tensor = field(default_factory=lambda: torch.empty(0))
    stride: int = 1

    def add(self, responses: Tensor) -> None:
        """Take in the responses `(N, K)` of a batch."""
        if not len(responses):
            return
        taken = responses[-self.count % self.stride :: self.stride]
        if not self.count:
            self.largest, self.sample = responses.max(dim=0).values, taken
        else:
            self.largest = torch.maximum(self.largest, responses.max(dim=0).values)
            self.sample = torch.cat([self.sample, taken])
        exact = responses.double()
        self.sums = self.sums + torch.stack([exact.sum(dim=0), exact.square().sum(dim=0)])
        self.count += len(responses)
        self._thin()

    def plus(self, other: "Responses") -> "Responses":
        """Return what both have seen."""
        if not self.count or not other.count:
            return self if self.count else other
        stride = max(self.stride, other.stride)
        both = Responses(
            count=self.count + other.count,
            largest=torch.maximum(self.largest, other.largest),
            sums=self.sums + other.sums,
            sample=torch.cat([each.sample[:: stride // each.stride] for each in (self, other)]),
            stride=stride,
        )
        both._thin()
        return both

    def statistics(self) -> LayerStatistics:
        """Return the statistics of all that was taken in."""
        mean, square = self.sums / self.count
        return LayerStatistics(
            largest=self.largest,
            mean=mean.float(),
            std=(square - mean.square()).clamp_min(0).sqrt().float(),
            quantiles=quantiles(self.sample),
            count=self.count,
        )

    def _thin(self) -> None:
        while len(self.sample) > SAMPLE:
            self.sample, self.stride = self.sample[::2], 2 * self.stride


@dataclass
class StatisticsRecorder:
    """Gathers the statistics of several layers; call `add` after each batch's forward pass."""

    seen: dict[str, Responses]
    means: Callable[[], dict[str, Tensor]]

    def add(self) -> None:
        """Take in what the last forward pass put out."""
        for name, means in self.means().items():
            self.seen[name].add(means.cpu())

    def statistics(self) -> ActivationStatistics:
        """Return what all processes of a distributed run have seen; each of them must call this."""
        return ActivationStatistics(
            layers={name: each.statistics() for name, each in _of_all(self.seen).items() if each.count}
        )


@contextmanager
def recording_statistics(classifier: Classifier, layers: Sequence[str]) -> Iterator[StatisticsRecorder]:
    """Watch layers while somebody else runs the network."""
    with recording_outputs(classifier, {name: classifier.module_of(name) for name in layers}, _means) as means:
        yield StatisticsRecorder(seen={name: Responses() for name in layers}, means=means)


def _means(output: Tensor) -> Tensor:
    """Return what `mean_response` returns."""
    return output.detach().float() if output.dim() == 2 else rectified_mean(output)


def _of_all(seen: dict[str, Responses]) -> dict[str, Responses]:
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return seen
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, seen)
    total = dict.fromkeys(seen, Responses())
    for part in parts:
        total = {name: total[name].plus(each) for name, each in part.items()}
    return total
