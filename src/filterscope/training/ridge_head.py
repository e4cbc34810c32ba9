"""Start from the head that ridge regression finds on the features of the training images."""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt
from torch import Tensor, nn

from filterscope.data.datamodule import ImageDataModule
from filterscope.errors import UserError
from filterscope.models.network_copy import evaluating
from filterscope.storage.disk_cache import format_bytes
from filterscope.training.feature_cache import backbone_features, free_memory
from filterscope.training.module import FinetuneModule

log = logging.getLogger(__name__)

HELD_OUT = 5  # one of so many images is held out to choose strength and scale
STRENGTHS = tuple(10 ** (i / 2) for i in range(-12, -1))  # as multiples of the variance of the features
SCALES = tuple(2 ** (i / 2) for i in range(-2, 15))  # of the logits, 0.5 to 128
COLUMNS = 4096  # features that are converted to float32 at once


class RidgeHead(pl.Callback):
    """Replaces the weights of a Linear head by the solution of a ridge regression before training begins.

    The regression goes from the features of the training images to their classes, 1 for the own class and 0 for all
    others. A fifth of the images is held out to choose its strength, and the number that the result is multiplied with
    to give logits, by their cross-entropy; then all images are used. They weigh as much as class weights and balanced
    sampling let them weigh in training.

    Args:
        augmentations: the number of random augmentations of each training image that features are computed of; 0: the
            image without augmentation. Where the features of frozen layers are cached, they are used.

    Raises:
        UserError: the head is not a Linear, the memory does not suffice, or the features are not finite.
    """

    def __init__(self, *, augmentations: NonNegativeInt = 4) -> None:
        super().__init__()
        self.augmentations = augmentations
        self._solved = False

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Solve the head before the validation that precedes training."""
        if trainer.state.fn == "validate":
            self._start(trainer, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Solve the head if no validation precedes training."""
        self._start(trainer, pl_module)

    def _start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self._solved or trainer.global_step or trainer.current_epoch:  # a resumed run starts from its own head
            return
        self._solved = True
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(module, FinetuneModule) or not isinstance(data, ImageDataModule):
            return
        head = module.classifier.head
        if not isinstance(head, nn.Linear):
            raise UserError(f"callbacks=ridge_head needs a Linear head; {module.classifier.backbone.name} ends in none")
        versions = range(self.augmentations) if self.augmentations and data.augment is not None else (None,)
        store = backbone_features(trainer, module, data)
        with evaluating(module.classifier):
            features = [store.features(version).flatten(1).cpu() for version in versions]
        labels = data.labels("train")
        solution = None
        if trainer.is_global_zero:
            of_loss = torch.ones(data.num_classes) if module.class_weights is None else module.class_weights.cpu()
            weights = of_loss[labels]
            if data.sampling == "balanced":
                weights = weights * data.class_weights()[labels]
            solution = solve_head(features, labels, head.out_features, weights)
            log.info(
                "ridge head: %d × %d features, strength %g, logits × %.3g; on a fifth of the images, held out for this "
                "choice, accuracy %.3f", len(labels) * len(features), head.in_features, *solution[2:],
            )  # fmt: skip
        found: Any = trainer.strategy.broadcast(solution)
        with torch.no_grad():
            head.weight.copy_(found.weight)
            if head.bias is not None:
                head.bias.copy_(found.bias)


class Solution(NamedTuple):
    """A head, `weight` `(classes, features)` and `bias` `(classes,)`, and how it was chosen."""

    weight: Tensor
    bias: Tensor
    strength: float
    scale: float
    accuracy: float


def solve_head(versions: Sequence[Tensor], labels: Tensor, num_classes: int, weights: Tensor) -> Solution:
    """Return the head that ridge regression finds.

    Args:
        versions: the features of one or more versions of each image, `(N, D)` each.
        labels: `(N,)`.
        num_classes: of the head.
        weights: of the images, `(N,)`.

    Raises:
        UserError: the memory does not suffice, or the features are not finite.
    """
    span, num_images = _Span(versions), len(labels)
    order = torch.randperm(num_images, generator=torch.Generator().manual_seed(0))
    held_out = torch.zeros(num_images, dtype=torch.bool)
    held_out[order[: num_images // HELD_OUT]] = True
    held_out, labels = held_out.repeat(len(versions)), labels.repeat(len(versions))
    shares = weights.repeat(len(versions))
    targets = F.one_hot(labels, num_classes).double()
    best = (float("inf"), STRENGTHS[0], 1.0, float("nan"))
    part = _Regression(span.inputs[~held_out], targets[~held_out], shares[~held_out])
    for strength in STRENGTHS if held_out.any() else ():
        weight, bias = part.solve(strength)
        logits = span.inputs[held_out] @ weight + bias
        accuracy = float((logits.argmax(1) == labels[held_out]).double().mean())
        losses = [float(F.cross_entropy(scale * logits, labels[held_out])) for scale in SCALES]
        best = min(best, *((loss, strength, scale, accuracy) for loss, scale in zip(losses, SCALES, strict=True)))
    _, strength, scale, accuracy = best
    weight, bias = span.head(*_Regression(span.inputs, targets, shares).solve(strength))
    return Solution(weight=scale * weight, bias=scale * bias, strength=strength, scale=scale, accuracy=accuracy)


class _Span:
    """Features less their means, in as few numbers as there are rows: products of two rows stay the same.

    Attributes:
        inputs: `(rows, min(rows, D))`, one row for each version of each image.
    """

    def __init__(self, versions: Sequence[Tensor]) -> None:
        self.versions = versions
        rows, size = sum(map(len, versions)), versions[0].shape[1]
        needed, free = 8 * min(rows, size) * (2 * rows + 3 * min(rows, size)), free_memory()
        if needed > free / 2:
            raise UserError(
                f"callbacks=ridge_head needs {format_bytes(needed)} for {rows} × {size} features, more than half of "
                f"the {format_bytes(free)} of free memory; callbacks.ridge_head.augmentations=0 needs least"
            )
        self.means = torch.cat([self._columns(start).mean(0) for start in range(0, size, COLUMNS)])
        if not self.means.isfinite().all():
            raise UserError("callbacks=ridge_head: the network's features are not finite")
        self.factor = None
        if size <= rows:
            self.inputs = torch.cat([self._centered(start) for start in range(0, size, COLUMNS)], 1).double()
            return
        products = torch.zeros(rows, rows)
        for start in range(0, size, COLUMNS):
            part = self._centered(start)
            products += part @ part.T
        products.diagonal().add_(1e-5 * products.diagonal().mean())  # they are rounded
        self.inputs = self.factor = torch.linalg.cholesky(products.double())

    def head(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weight `(classes, D)` and bias for features from those for `inputs`."""
        if self.factor is not None:
            weight = torch.linalg.solve_triangular(self.factor.T, weight, upper=True)  # of the rows
            weight = torch.cat(
                [self._centered(start).T @ weight.float() for start in range(0, len(self.means), COLUMNS)]
            )
        return weight.T.float(), (bias - self.means.double() @ weight.double()).float()

    def _columns(self, start: int) -> Tensor:
        return torch.cat([each[:, start : start + COLUMNS].float() for each in self.versions])

    def _centered(self, start: int) -> Tensor:
        return self._columns(start) - self.means[start : start + COLUMNS]


class _Regression:
    """Ridge regression of one set of data with several strengths; the constant is not penalised."""

    def __init__(self, inputs: Tensor, targets: Tensor, weights: Tensor) -> None:
        shares = (weights / weights.sum()).double()[:, None]
        self.means = (shares * inputs).sum(0), (shares * targets).sum(0)
        inputs = (inputs - self.means[0]) * shares.sqrt()
        self.system, self.wanted = inputs.T @ inputs, inputs.T @ ((targets - self.means[1]) * shares.sqrt())

    def solve(self, strength: float) -> tuple[Tensor, Tensor]:
        """Return weight `(D, classes)` and bias `(classes,)`; the strength is relative to the inputs' variance."""
        system = self.system.clone()
        system.diagonal().add_(strength * system.diagonal().sum() + 1e-30)
        weight = torch.linalg.solve(system, self.wanted)
        return weight, self.means[1] - self.means[0] @ weight
