"""Gathering the tallies of convolutions, in a forward pass that runs anyway or in one of its own."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from filterscope.analysis.health.running_sums import BatchStatistics, RunningSums
from filterscope.analysis.hooks import observing, recording_outputs, run_model
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.layers import find_layer

_TOGETHER = 512  # images; summing up a batch's few numbers takes mostly calls


@dataclass
class Recorder:
    """Gathers the tallies of several layers; give it each batch's labels after the batch's forward pass."""

    looked: Callable[[], dict[str, BatchStatistics]]
    _tallies: dict[str, RunningSums]
    _waiting: dict[str, list[tuple[BatchStatistics, Tensor | None]]] = field(default_factory=lambda: defaultdict(list))
    _images: int = 0

    def add(self, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Take in what the last forward pass put out, and return the responses, `(images, filters)` each."""
        responses = {}
        for name, look in self.looked().items():
            self._waiting[name].append((look, labels))
            responses[name] = look.responses
        self._images += max(map(len, responses.values()), default=0)
        if self._images >= _TOGETHER:
            self._sum_up()
        return responses

    @property
    def tallies(self) -> dict[str, RunningSums]:
        """The tallies of all that was taken in, by layer."""
        self._sum_up()
        return self._tallies

    def _sum_up(self) -> None:
        for name, waiting in self._waiting.items():
            for known, some in itertools.groupby(waiting, key=lambda each: each[1] is not None):
                looks, labels = zip(*some, strict=True)
                self._tallies[name].take(BatchStatistics.joined(looks), torch.cat(labels) if known else None)
        self._waiting.clear()
        self._images = 0


@contextmanager
def recording_activity(classifier: Classifier, layers: Sequence[str]) -> Iterator[Recorder]:
    """Watch convolutions while somebody else runs the network: call the recorder's `add(labels)` after each batch."""
    tallies: dict[str, RunningSums] = {}
    for name in layers:
        filters = find_layer(classifier.layers, name).num_channels
        if not isinstance(classifier.module_of(name), nn.Conv2d) or filters is None:
            raise UserError(f"layer {name!r} has no kernels, so its filters' activity cannot be gathered")
        tallies[name] = RunningSums.empty(filters=filters, classes=classifier.num_classes)
    with recording_outputs(
        classifier, {name: output_module(classifier, name) for name in layers}, BatchStatistics.at
    ) as looked:
        yield Recorder(looked, tallies)


def record_activity(
    classifier: Classifier, images: Tensor, labels: Tensor | None = None, *, layers: Sequence[str], batch_size: int = 64
) -> tuple[dict[str, RunningSums], dict[str, Tensor]]:
    """Run images through the network and return the layers' tallies and the responses, `(images, filters)` each.

    Args:
        classifier: is left as it was.
        images: `(N, C, H, W)` in [0, 1].
        labels: `(N,)` where they are known.
        layers: names of convolutions.
        batch_size: of the forward passes.
    """
    responses: dict[str, list[Tensor]] = {name: [] for name in layers}
    known = None if labels is None else torch.split(labels, batch_size)
    with observing(classifier), torch.no_grad(), recording_activity(classifier, layers) as recorder:
        for i, some in enumerate(torch.split(images, batch_size)):
            run_model(classifier, some)
            for name, each in recorder.add(None if known is None else known[i]).items():
                responses[name].append(each.cpu())
    return recorder.tallies, {name: torch.cat(parts) for name, parts in responses.items()}


def output_module(classifier: Classifier, layer: str) -> nn.Module:
    """Return the module whose rectified output is what a convolution passes on: itself or the norm right after it."""
    layers = list(classifier.layers.values())
    at = layers.index(find_layer(classifier.layers, layer))
    after = classifier.get_submodule(layers[at + 1].path) if at + 1 < len(layers) else None
    if isinstance(after, nn.BatchNorm2d) and after.num_features == layers[at].num_channels:
        return after
    return classifier.get_submodule(layers[at].path)


def reduce_over_ranks(tallies: Mapping[str, RunningSums]) -> None:
    """Sum all tallies over the processes of a distributed run."""
    for tally in tallies.values():
        tally.reduce()
