"""The statistics of real images from a forward pass that runs anyway, in bounded memory and over all processes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from filterscope.models.classifier import Classifier
from filterscope.models.layers import find_layer
from filterscope.probes.synthesis.trust import LEVELS, ActivationStatistics, LayerStatistics

SAMPLE = 1024  # images, at most, that quantiles are taken from
_CACHED = 1 << 19  # values that a processor's cache holds


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
            quantiles=torch.quantile(self.sample, LEVELS, dim=0),
            count=self.count,
        )

    def _thin(self) -> None:
        while len(self.sample) > SAMPLE:
            self.sample, self.stride = self.sample[::2], 2 * self.stride


@contextmanager
def recording_statistics(classifier: Classifier, layers: Sequence[str]) -> Iterator[Callable[[], ActivationStatistics]]:
    """Watch layers while somebody else runs the network.

    Yields a function to be called when all has run, after the block too: it returns the statistics over all processes
    of a distributed run, each of which must call it.
    """
    seen = {name: Responses() for name in layers}
    handles = []

    def watch(name: str) -> None:
        relu = _rectifier(classifier, name)

        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            seen[name].add(_means(output.detach(), rectified=relu is not None).cpu())

        handles.append((relu or classifier.module_of(name)).register_forward_hook(hook))

    try:
        for name in layers:
            watch(name)
        yield lambda: ActivationStatistics(
            layers={name: each.statistics() for name, each in _of_all(seen).items() if each.count}
        )
    finally:
        for handle in handles:
            handle.remove()


def _rectifier(classifier: Classifier, layer: str) -> nn.Module | None:
    """Return the ReLU that gets what a layer of maps puts out and nothing else, where there is one."""
    path, _, place = find_layer(classifier.layers, layer).path.rpartition(".")
    parent = classifier.get_submodule(path)
    if not isinstance(parent, nn.Sequential) or not place.isdigit() or int(place) + 1 >= len(parent):
        return None
    own, after = parent[int(place)], parent[int(place) + 1]
    return after if isinstance(own, nn.Conv2d | nn.BatchNorm2d) and type(after) is nn.ReLU else None


def _means(output: Tensor, *, rectified: bool) -> Tensor:
    """Return what `mean_response` returns, a few images at a time: a whole batch does not fit the cache."""
    if output.dim() == 2:
        return output.float()
    places = tuple(range(2, output.dim()))
    few = torch.split(output, max(1, _CACHED // output[0].numel()))
    return torch.cat([(some if rectified else F.relu(some)).mean(dim=places, dtype=torch.float32) for some in few])


def _of_all(seen: dict[str, Responses]) -> dict[str, Responses]:
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return seen
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, seen)
    total = dict.fromkeys(seen, Responses())
    for part in parts:
        total = {name: total[name].plus(each) for name, each in part.items()}
    return total
