"""The importance of filters: how much the loss is expected to rise without each, from two backward passes.

A gate of 1 behind each filter scales its output. When the gate falls to 0, the loss of an image changes by minus its
derivative by the gate, to first order (Molchanov et al. 2017, 2019), and by half the curvature. Of the curvature the
Gauss-Newton part is measured: the mean square of the derivative for labels that are drawn from the network's own
probabilities (Martens 2020). The true labels would make it too large where the network is too sure of itself. In a
trained network the derivatives have a mean near 0, so that their mean over some images says little about other images:
it is shrunk towards 0, the more the larger its standard error is.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from filterscope.analysis.health.classes import top_classes
from filterscope.analysis.health.recorder import output_tap
from filterscope.analysis.hooks import observing, run_model
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier

IMAGES = 64  # on which importance is measured by default; benchmarks/health.py --only overhead measures the time
NEEDED = 0.0005  # of the loss; what a single filter may cost that is called not needed
SHARE = 0.05  # of a layer's squared effects on the loss; what all filters that are called not needed may hold together


@dataclass(frozen=True, kw_only=True)
class Importance:
    """The importance of a layer's filters.

    Attributes:
        columns: by measure, `(filters,)` each: `importance_signed` (the expected change of the loss without the
            filter), `importance_se` (the standard error of the mean change over the images), `importance` (the size of
            the change to be expected on other images, the root of the sum of their squares) and `needed` (1 or 0).
        classes_hurt: for each filter the classes whose loss is expected to rise most, at most three.
    """

    columns: dict[str, Tensor]
    classes_hurt: list[list[int]]


class LossChange(NamedTuple):
    """The expected change of each image's loss without each filter of a layer.

    Attributes:
        first: the first-order term, `(N, filters)`.
        second: the second-order term, `(N, filters)`; None: `first` is the whole change, measured by `ablate_each`.
    """

    first: Tensor
    second: Tensor | None = None


def importance_of(change: LossChange, labels: Tensor, *, needed: float = NEEDED) -> Importance:
    """Return the importance of a layer's filters from the change of each image's loss.

    A filter is not needed if the loss is expected to rise by at most `needed` without it, as long as all such filters
    together hold at most `SHARE` of the layer's squared effects on the loss of single images. Without that bound,
    filters that lower the loss of many images and raise that of others would count: single ones can go, together they
    cost as much as random ones.

    Args:
        change: as `loss_changes` returns it.
        labels: `(N,)`.
        needed: the threshold.
    """
    first = change.first.double()
    second = torch.zeros_like(first) if change.second is None else change.second.double()
    signed, error, effect = first.mean(0), first.std(0) / len(first) ** 0.5, first.square().mean(0)
    if change.second is not None:
        # The positive-part estimator of James and Stein; 0 if the error is unknown, as for a single image.
        kept = (1 - error.square().sum() / signed.square().sum()).clamp_min(0).nan_to_num(0)
        signed = kept * signed + second.mean(0)
    order = effect.argsort()
    spare = torch.zeros(len(effect), dtype=torch.bool)
    spare[order] = effect[order].cumsum(0) <= SHARE * effect.sum()
    return Importance(
        columns={
            "importance": (signed.square() + error.square()).sqrt(),
            "importance_signed": signed,
            "importance_se": error,
            "needed": (~spare | (signed > needed)).long(),
        },
        classes_hurt=[[label for label, rise in each if rise > 0] for each in top_classes(first + second, labels, 3)],
    )


def loss_changes(
    classifier: Classifier, images: Tensor, labels: Tensor, *, layers: Sequence[str], batch_size: int = 32
) -> dict[str, LossChange]:
    """Return the expected change of each image's loss without each filter, by layer.

    Args:
        classifier: is left as it was; its parameters get no gradients.
        images: `(N, C, H, W)` in [0, 1].
        labels: `(N,)`.
        layers: names of convolutions.
        batch_size: of the passes.

    Raises:
        UserError: there are no images, the number of labels differs, or a layer is not a convolution.
    """
    if len(images) == 0 or len(images) != len(labels):
        raise UserError(f"importance needs images with labels: got {len(images)} images and {len(labels)} labels")
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., Tensor]:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
            outputs[name] = output if output.requires_grad else output.detach().requires_grad_()
            return outputs[name]

        return hook

    found: dict[str, tuple[list[Tensor], list[Tensor]]] = {layer: ([], []) for layer in layers}
    generator = torch.Generator().manual_seed(0)
    with observing(classifier), torch.enable_grad(), ExitStack() as stack:
        for layer in layers:
            stack.callback(output_tap(classifier, layer).module.register_forward_hook(keep(layer)).remove)
        for batch, classes in zip(torch.split(images, batch_size), torch.split(labels, batch_size), strict=True):
            logits = run_model(classifier, batch).float()
            probabilities = logits.detach().softmax(1).nan_to_num(1).cpu()  # multinomial refuses NaN
            drawn = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
            tapped = [outputs[layer] for layer in layers]
            for order, targets in enumerate((classes, drawn)):
                loss = F.cross_entropy(logits, targets.to(logits.device), reduction="sum")
                slopes = torch.autograd.grad(loss, tapped, allow_unused=True, retain_graph=not order)
                for layer, output, slope in zip(layers, tapped, slopes, strict=True):
                    term = output.new_zeros(output.shape[:2]) if slope is None else -(output * slope).sum((2, 3))
                    term = term.detach().float().cpu()
                    found[layer][order].append(term.square() / 2 if order else term)
            outputs.clear()
    return {layer: LossChange(torch.cat(first), torch.cat(second)) for layer, (first, second) in found.items()}
