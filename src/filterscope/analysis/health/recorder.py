"""Record the activity of convolutions, in forward passes of the caller or in its own."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from filterscope.analysis.health.activity import BatchActivity, RunningSums
from filterscope.analysis.hooks import Tap, observing, recording, run_model, taps_of
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.layers import find_layer


@dataclass
class ActivityRecorder:
    """Adds up the activity of several layers; call `add` after each forward pass.

    Attributes:
        sums: the running sums by layer.
        batch: the activity in the last forward pass by layer.
    """

    sums: dict[str, RunningSums]
    batch: dict[str, BatchActivity]

    def add(self, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Add the last forward pass, with its labels if known, and return the responses, `(images, filters)` each."""
        responses = {name: batch.responses for name, batch in self.batch.items()}
        for name, batch in self.batch.items():
            self.sums[name].update(batch, labels)
        self.batch.clear()
        return responses


@contextmanager
def recording_activity(classifier: Classifier, layers: Sequence[str]) -> Iterator[ActivityRecorder]:
    """Record convolutions while the caller runs the network and calls the recorder's `add` after each batch.

    Raises:
        UserError: a layer is no convolution.
    """
    sums: dict[str, RunningSums] = {}
    for name in layers:
        filters = find_layer(classifier.layers, name).num_channels
        if not isinstance(classifier.module_of(name), nn.Conv2d) or filters is None:
            raise UserError(f"layer {name!r} has no kernels, so the activity of its filters cannot be recorded")
        sums[name] = RunningSums(filters=filters, classes=classifier.label_count)
    taps = {name: output_tap(classifier, name) for name in layers}
    with recording(classifier.backbone.network, taps, BatchActivity.of_outputs) as batch:
        yield ActivityRecorder(sums=sums, batch=batch)


def record_activity(
    classifier: Classifier, images: Tensor, labels: Tensor | None = None, *, layers: Sequence[str], batch_size: int = 64
) -> tuple[dict[str, RunningSums], dict[str, Tensor]]:
    """Run images through the network and return the running sums and the responses, by layer.

    Args:
        classifier: is left as it was.
        images: `(N, C, H, W)` in [0, 1].
        labels: `(N,)` if they are known.
        layers: names of convolutions.
        batch_size: of the forward passes.

    Returns:
        The running sums, and the responses `(N, filters)`.
    """
    responses: dict[str, list[Tensor]] = {name: [] for name in layers}
    batches = None if labels is None else torch.split(labels, batch_size)
    with observing(classifier), torch.no_grad(), recording_activity(classifier, layers) as recorder:
        for i, batch in enumerate(torch.split(images, batch_size)):
            run_model(classifier, batch)
            for name, each in recorder.add(None if batches is None else batches[i]).items():
                responses[name].append(each.cpu())
    return recorder.sums, {name: torch.cat(parts) for name, parts in responses.items()}


def output_tap(classifier: Classifier, layer: str) -> Tap:
    """Return where a convolution's output is recorded: behind the batch norm that follows it, or else its own."""
    return taps_of(classifier, [output_layer(classifier, layer)]).popitem()[1]


def output_layer(classifier: Classifier, layer: str) -> str:
    """Return the name of the batch norm that follows a convolution, or of the convolution itself."""
    own = find_layer(classifier.layers, layer)
    after = own.next_layers[0] if len(own.next_layers) == 1 else own.name
    return after if isinstance(classifier.module_of(after), nn.BatchNorm2d) else own.name


def sum_over_ranks(sums: Mapping[str, RunningSums]) -> None:
    """Sum all running sums over the processes of a distributed run; every rank must call this."""
    for each in sums.values():
        each.sum_over_ranks()
