"""Tests of the verdicts: the accuracy lost without filters, and the response to natural structure.

The response is compared with that to phase-scrambled images, also in a re-initialised copy of the network.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from filterscope.analysis.health.recorder import output_layer, output_tap, record_activity
from filterscope.analysis.hooks import observing, run_model
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.layers import find_layer
from filterscope.models.split_network import split_before

Filters = Mapping[str, Sequence[int] | Tensor]
"""Indices of filters by layer."""


def accuracy(classifier: Classifier, images: Tensor, labels: Tensor) -> float:
    """Return the share of images `(N, C, H, W)` in [0, 1] that are classified correctly.

    Raises:
        UserError: there are no images, or the number of labels differs.
    """
    check_images(images, labels)
    return float((predictions(classifier, images) == labels.cpu()).double().mean())


def predictions(classifier: Classifier, images: Tensor, *, batch_size: int = 64) -> Tensor:
    """Return the predicted class of each image `(N, C, H, W)` in [0, 1]."""
    with observing(classifier), torch.no_grad():
        return torch.cat([run_model(classifier, batch).argmax(1).cpu() for batch in torch.split(images, batch_size)])


def check_images(images: Tensor, labels: Tensor) -> None:
    """Raise a `UserError` if there are no images, or the number of labels differs."""
    if len(images) == 0 or len(images) != len(labels):
        raise UserError(f"ablation needs images with labels: got {len(images)} images and {len(labels)} labels")


@contextmanager
def ablated(classifier: Classifier, filters: Filters) -> Iterator[None]:
    """Set the outputs of filters to zero while the block runs, as Morcos et al. (2018) do.

    Raises:
        UserError: a layer is not a convolution.
    """
    handles = []
    try:
        for layer, indices in filters.items():
            silence = partial(_silence, torch.as_tensor(indices, dtype=torch.long))
            handles.append(output_tap(classifier, layer).module.register_forward_hook(silence))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _silence(index: Tensor, _module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
    return output.index_fill(1, index.to(output.device), 0)


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """What changes without single filters of a layer.

    Attributes:
        losses: change of each image's loss without each filter, `(N, filters)`.
        right: 1 where an image becomes right without a filter, -1 where it becomes wrong, `(N, filters)`.
    """

    losses: Tensor
    right: Tensor


def ablate_each(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    layer: str,
    filters: Sequence[int] | None = None,
    rows: int = 256,
) -> Ablation:
    """Silence single filters of a layer, one at a time.

    Only the layers behind the last exact split point before the layer run again for every filter, for several filters
    in one batch.

    Args:
        classifier: is left as it was.
        images: `(N, C, H, W)` in [0, 1].
        labels: `(N,)`.
        layer: name of a convolution.
        filters: their indices; None: all.
        rows: images times filters in a batch.

    Raises:
        UserError: there are no images, the number of labels differs, or the layer is not a convolution.
    """
    check_images(images, labels)
    module = output_tap(classifier, layer).module
    count = find_layer(classifier.layers, layer).num_channels or 0
    indices = list(range(count) if filters is None else filters)
    split = split_before(classifier, output_layer(classifier, layer))
    logits = split.logits if split else classifier
    behind = split is not None and split.layer is module
    losses: list[Tensor] = []
    right: list[Tensor] = []
    with observing(classifier), torch.no_grad():
        for batch, classes in zip(torch.split(images, 64), torch.split(labels, 64), strict=True):
            start = run_model(classifier, batch, split.features) if split else batch
            whole = _outcome(run_model(classifier, start, logits), classes)
            parts = []
            for chosen in torch.split(torch.tensor(indices, dtype=torch.long), max(1, rows // len(batch))):
                repeated = start.repeat(len(chosen), *[1] * (start.dim() - 1))
                with ExitStack() as stack:
                    if behind:
                        _silence_each(chosen, repeated)
                    else:
                        stack.callback(module.register_forward_hook(partial(_silence_hook, chosen)).remove)
                    found = run_model(classifier, repeated, logits)
                parts.append(_outcome(found, classes.repeat(len(chosen))).view(2, len(chosen), len(batch)))
            change = torch.cat(parts, dim=1) - whole[:, None]
            losses.append(change[0].T)
            right.append(change[1].T)
    return Ablation(losses=torch.cat(losses), right=torch.cat(right).long())


def _outcome(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of each image and whether it is classified correctly, `(2, N)`."""
    logits, labels = logits.float().cpu(), labels.cpu()
    return torch.stack([F.cross_entropy(logits, labels, reduction="none"), (logits.argmax(1) == labels).float()])


def _silence_each(filters: Tensor, output: Tensor) -> None:
    """Set filter i of the i-th part of a batch to zero, in place."""
    for part, each in zip(output.chunk(len(filters)), filters.tolist(), strict=True):
        part[:, each] = 0


def _silence_hook(filters: Tensor, _module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
    output = output.clone()
    _silence_each(filters, output)
    return output


@contextmanager
def with_kernels(classifier: Classifier, kernels: Mapping[str, Tensor]) -> Iterator[None]:
    """Give layers other kernels while the block runs, and their own ones, bit by bit, afterwards."""
    own = {layer: cast(nn.Conv2d, classifier.module_of(layer)) for layer in kernels}
    kept = {layer: conv.weight.detach().clone() for layer, conv in own.items()}
    try:
        with torch.no_grad():
            for layer, conv in own.items():
                conv.weight.copy_(kernels[layer])
        yield
    finally:
        with torch.no_grad():
            for layer, conv in own.items():
                conv.weight.copy_(kept[layer])


def phase_scrambled(images: Tensor) -> Tensor:
    """Return images `(N, C, H, W)` with the same amplitude spectrum and mean but random phases.

    All channels of an image are shifted by the same phases, so that their correlation is kept. Values may leave [0, 1],
    because clipping would change the spectrum.
    """
    size = images.shape[-2:]
    noise = torch.rand(len(images), 1, *size, generator=torch.Generator().manual_seed(0))
    # The phases of real noise are symmetric, so that the result is real.
    phases = torch.fft.rfft2(noise.to(images))
    phases = phases / phases.abs().clamp_min(1e-12)
    phases[..., 0, 0] = 1
    scrambled: Tensor = torch.fft.irfft2(torch.fft.rfft2(images) * phases, s=size)
    return scrambled


def reinitialized_copy(classifier: Classifier) -> Classifier:
    """Return a copy of the network with new random weights from each layer's own initialisation."""
    fresh = copy.deepcopy(classifier)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for module in fresh.modules():
            reset = getattr(module, "reset_parameters", None)
            if isinstance(module, nn.Module) and callable(reset):
                reset()
    return fresh


def natural_preference(
    classifier: Classifier, images: Tensor, *, layers: Sequence[str], batch_size: int = 64
) -> dict[str, Tensor]:
    """Return how much more each filter responds to images than to phase-scrambled ones, -1 to 1.

    The index is (natural − scrambled) / (natural + scrambled) of the mean rectified responses (Freeman et al. 2013). It
    is 0 for a filter that responds to neither.

    Args:
        classifier: is left as it was.
        images: `(N, C, H, W)` in [0, 1].
        layers: names of convolutions.
        batch_size: of the forward passes.

    Raises:
        UserError: there are no images.
    """
    if len(images) == 0:
        raise UserError("the response to natural structure needs at least one image")
    _, natural = record_activity(classifier, images, layers=layers, batch_size=batch_size)
    _, scrambled = record_activity(classifier, phase_scrambled(images), layers=layers, batch_size=batch_size)
    preference = {}
    for name in layers:
        more, less = natural[name].double().mean(0), scrambled[name].double().mean(0)
        preference[name] = (more - less) / (more + less).clamp_min(1e-300)
    return preference
