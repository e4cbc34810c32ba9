"""Statistics of real images from forward passes that run anyway, in bounded memory and over all ranks.

Not a torchmetrics metric: its states need the same shape on every rank, but the number of channels is known only to
ranks that have run a batch, and samples taken at different strides must be thinned before they are joined.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from filterscope.analysis.hooks import recording, taps_of
from filterscope.analysis.synthesis.trust import ActivationStatistics, LayerStatistics, mean_response
from filterscope.models.classifier import Classifier
from filterscope.runtime.processes import gather

SAMPLE = 512
"""The largest number of images whose responses are kept; checkpoints hold them."""


@dataclass
class RunningStatistics:
    """Exact maximum, mean and spread of a layer's responses so far, and every `stride`-th response."""

    count: int = 0
    largest: Tensor = field(default_factory=lambda: torch.empty(0))
    sums: Tensor = field(default_factory=lambda: torch.zeros(2, 1, dtype=torch.float64))
    sample: Tensor = field(default_factory=lambda: torch.empty(0))
    stride: int = 1

    def add(self, responses: Tensor) -> None:
        """Add the responses `(N, K)` of a batch."""
        if not len(responses):
            return
        sampled = responses[-self.count % self.stride :: self.stride]
        exact = responses.double()
        largest = responses.max(dim=0).values
        self.largest = torch.maximum(self.largest, largest) if self.count else largest
        self.sample = torch.cat([self.sample, sampled]) if self.count else sampled
        self.sums = self.sums + torch.stack([exact.sum(dim=0), exact.square().sum(dim=0)])
        self.count += len(responses)
        self._thin()

    def merge(self, other: "RunningStatistics") -> "RunningStatistics":
        """Return the statistics of both sets of images."""
        if not self.count or not other.count:
            return self if self.count else other
        stride = max(self.stride, other.stride)
        both = RunningStatistics(
            count=self.count + other.count,
            largest=torch.maximum(self.largest, other.largest),
            sums=self.sums + other.sums,
            sample=torch.cat([each.sample[:: stride // each.stride] for each in (self, other)]),
            stride=stride,
        )
        both._thin()
        return both

    def statistics(self) -> LayerStatistics:
        """Return the statistics of all images so far."""
        mean, square = self.sums / self.count
        return LayerStatistics(
            largest=self.largest,
            mean=mean.float(),
            std=(square - mean.square()).clamp_min(0).sqrt().float(),
            sample=self.sample,
            count=self.count,
        )

    def _thin(self) -> None:
        while len(self.sample) > SAMPLE:
            self.sample, self.stride = self.sample[::2], 2 * self.stride


@dataclass
class StatisticsRecorder:
    """Collects the statistics of several layers; `add` is called after each forward pass."""

    running: dict[str, RunningStatistics]
    means: dict[str, Tensor]

    def add(self) -> None:
        """Add the layers' responses in the last forward pass."""
        for name, means in self.means.items():
            self.running[name].add(means.cpu())
        self.means.clear()

    def statistics(self) -> ActivationStatistics:
        """Return the statistics over all ranks of a distributed run; every rank must call this."""
        total = dict.fromkeys(self.running, RunningStatistics())
        for part in gather(self.running):
            total = {name: total[name].merge(each) for name, each in part.items()}
        return ActivationStatistics(layers={name: each.statistics() for name, each in total.items() if each.count})


@contextmanager
def recording_statistics(classifier: Classifier, layers: Sequence[str]) -> Iterator[StatisticsRecorder]:
    """Record layers while the caller runs the network inside the block."""
    taps = taps_of(classifier, layers)
    with recording(classifier.backbone.network, taps, lambda output: mean_response(output.detach())) as means:
        yield StatisticsRecorder(running={name: RunningStatistics() for name in layers}, means=means)
