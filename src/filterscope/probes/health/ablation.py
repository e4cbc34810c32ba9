"""Causal weight: the accuracy that is lost when filters are silenced."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.probes.health.activity import passed_on
from filterscope.probes.observing import device_of, observing


def accuracy(classifier: Classifier, images: Tensor, labels: Tensor, *, batch_size: int = 64) -> float:
    """Return the share of images `(N, C, H, W)` in [0, 1] whose class is found.

    Raises:
        UserError: there are no images, or not as many labels.
    """
    if len(images) == 0 or len(images) != len(labels):
        raise UserError(f"ablation needs images with labels: got {len(images)} images and {len(labels)} labels")
    right = 0
    with observing(classifier), torch.no_grad():
        for some, known in zip(torch.split(images, batch_size), torch.split(labels, batch_size), strict=True):
            logits = classifier(some.to(device_of(classifier)))
            right += int((logits.argmax(1).cpu() == known.cpu()).sum())
    return right / len(images)


@contextmanager
def ablated(classifier: Classifier, layer: str, filters: Sequence[int] | Tensor) -> Iterator[None]:
    """Silence filters of a convolution while the block runs: what they put out is zero, as Morcos et al. (2018) do.

    Raises:
        UserError: the layer is no convolution.
    """
    if not isinstance(classifier.module_of(layer), nn.Conv2d):
        raise UserError(f"layer {layer!r} has no kernels, so none of its filters can be ablated")
    index = torch.as_tensor(filters, dtype=torch.long)

    def silence(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return output.index_fill(1, index.to(output.device), 0)

    handle = passed_on(classifier, layer).register_forward_hook(silence)
    try:
        yield
    finally:
        handle.remove()


def cost(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    layer: str,
    sets: Sequence[Sequence[int] | Tensor],
    batch_size: int = 64,
) -> Tensor:
    """Return the accuracy lost by ablating each set of filters of a layer together, one entry per set."""
    whole = accuracy(classifier, images, labels, batch_size=batch_size)
    lost = []
    for filters in sets:
        with ablated(classifier, layer, filters):
            lost.append(whole - accuracy(classifier, images, labels, batch_size=batch_size))
    return torch.tensor(lost, dtype=torch.float64)
