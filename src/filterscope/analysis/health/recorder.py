"""Record the activity of convolutions, in forward passes of the caller or in its own."""

from collections.abc import Iterator, Sequence
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
    taps = {name: output_tap(classifier, name) for name in layers}
    filters = {name: find_layer(classifier.layers, name).num_channels or 0 for name in layers}
    sums = {name: RunningSums(filters=filters[name], classes=classifier.label_count) for name in layers}
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
    """Return where a convolution's filters are recorded: behind the norm and the activation that follow it.

    Raises:
        UserError: the layer is not a convolution.
    """
    if not isinstance(classifier.module_of(layer), nn.Conv2d):
        raise UserError(f"layer {layer!r} has no kernels, so it has no filters to measure")
    return taps_of(classifier, [output_layer(classifier, layer)]).popitem()[1]


def output_layer(classifier: Classifier, layer: str) -> str:
    """Return the name of the activation or norm that follows a convolution by execution, or of the convolution itself.

    A module that runs several times (the one ReLU of a residual block) is not taken.
    """
    found = find_layer(classifier.layers, layer)
    for kind in ("norm", "activation"):
        after = classifier.layers.get(found.next_layers[0]) if len(found.next_layers) == 1 else None
        mixing = after is not None and isinstance(classifier.get_submodule(after.path), nn.LocalResponseNorm)
        if after is not None and after.kind == kind and after.calls == 1 and not mixing:
            found = after
    return found.name


def is_rectified(classifier: Classifier, layer: str) -> bool:
    """Return whether no later layer notices negative outputs of a convolution's filters, because a ReLU follows.

    Where none does (the last convolution of a residual branch, SiLU), zeros and mean outputs say little.
    """
    after = find_layer(classifier.layers, output_layer(classifier, layer))
    if isinstance(classifier.get_submodule(after.path), nn.ReLU | nn.ReLU6):
        return True
    return bool(after.next_functions) and set(after.next_functions) <= {"relu", "relu_", "relu6"}
