"""The Lightning module: a classifier, a policy, an optimizer and the metrics."""

import hashlib
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from filterscope.models.classifier import Classifier
from filterscope.training.policies import Policy


class FinetuneModule(pl.LightningModule):
    """Trains a classifier with cross-entropy and counts what it gets right.

    Logged per epoch, over all ranks: `train/loss train/acc val/loss val/acc test/loss test/acc`, and `…/acc_top5`
    where there are more than ten classes. `confusion["val"]` and `confusion["test"]` hold `(classes, classes)` counts,
    rows true, columns predicted.

    Args:
        classifier: is trained in place.
        policy: what is trained, when, how fast.
        optimizer: makes the optimizer from parameter groups; its `lr` and `weight_decay` defaults are the head's.
        schedule: makes the schedule from the optimizer and `total_steps`.
        seed: dropout draws from (seed, step, rank) alone, so that a resumed run draws the same.
        label_smoothing: of the training loss, 0 to 1.
        channels_last: run convolutions in the memory layout that is faster on most processors.
        about: plain data that every checkpoint carries under `filterscope` (config, class names, image size).
    """

    def __init__(
        self,
        classifier: Classifier,
        *,
        policy: Policy,
        optimizer: Callable[..., Optimizer],
        schedule: Callable[..., LRScheduler],
        seed: int = 0,
        label_smoothing: float = 0.0,
        channels_last: bool = True,
        about: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.classifier = classifier.to(memory_format=torch.channels_last) if channels_last else classifier
        self.policy = policy
        self.optimizer = optimizer
        self.schedule = schedule
        self.seed = seed
        self.label_smoothing = label_smoothing
        self.channels_last = channels_last
        self.about = about or {}
        self.measures = torch.nn.ModuleDict({f"{split}_": _measures(classifier.num_classes) for split in _SPLITS})
        self.confusion: dict[str, Tensor] = {}
        policy.freeze(classifier)

    @property
    def epoch(self) -> int:
        """The epoch that is running, from 0; right on resume too, where `current_epoch` lags behind."""
        progress: Any = self.trainer.fit_loop.epoch_progress.current
        return int(progress.processed)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images in [0, 1]."""
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.classifier(images)
        return logits

    def configure_optimizers(self) -> Any:
        """Build optimizer and schedule, the latter advanced after every step."""
        given = getattr(self.optimizer, "keywords", {})
        groups = self.policy.groups(self.classifier, given.get("lr", 1e-3), given.get("weight_decay", 0.0))
        optimizer = self.optimizer(groups)
        schedule = self.schedule(optimizer, total_steps=max(1, int(self.trainer.estimated_stepping_batches)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_epoch_start(self) -> None:
        """Hold a backbone that is not trained in this epoch in evaluation mode."""
        self.classifier.backbone.train(self.policy.trains_backbone(self.epoch))

    def on_train_batch_start(self, _batch: object, _index: int) -> None:
        """Make what the step draws depend on (seed, step, rank) only."""
        key = f"{self.seed}/{self.global_step}/{self.global_rank}".encode()
        torch.manual_seed(int.from_bytes(hashlib.sha256(key).digest()[:7], "big"))

    def on_before_optimizer_step(self, _optimizer: Optimizer) -> None:
        """Drop the gradients of a backbone that is not released yet."""
        if not self.policy.trains_backbone(self.epoch):
            for parameter in self.classifier.backbone.parameters():
                parameter.grad = None

    def training_step(self, batch: tuple[Tensor, Tensor], _index: int) -> Tensor:
        """Return the loss of a batch."""
        images, labels = batch
        logits = self(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)
        self._count("train", logits.detach(), labels, loss.detach())
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], _index: int) -> None:
        """Count a validation batch."""
        self._evaluate("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], _index: int) -> None:  # noqa: PT019
        """Count a test batch."""
        self._evaluate("test", batch)

    def on_validation_epoch_end(self) -> None:
        """Keep the confusion matrix of the validation images."""
        self._keep_confusion("val")

    def on_test_epoch_end(self) -> None:
        """Keep the confusion matrix of the test images."""
        self._keep_confusion("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the checkpoint self-contained."""
        checkpoint.setdefault("filterscope", {}).update(self.about)

    def _evaluate(self, split: str, batch: tuple[Tensor, Tensor]) -> None:
        images, labels = batch
        logits = self(images).float()
        self._count(split, logits, labels, F.cross_entropy(logits, labels))
        self._of(split)["confusion"].update(logits, labels)

    def _count(self, split: str, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
        for name, measure in self._of(split).items():
            if name == "confusion":
                continue
            measure.update(loss, weight=len(labels)) if name == "loss" else measure.update(logits, labels)
            self.log(
                f"{split}/{name}",
                measure,
                on_step=False,
                on_epoch=True,
                batch_size=len(labels),
                logger=False,
                prog_bar=name in ("loss", "acc"),
            )

    def _of(self, split: str) -> dict[str, Metric]:
        return dict(self.measures[f"{split}_"].items())  # type: ignore[operator]

    def _keep_confusion(self, split: str) -> None:
        measure = self._of(split)["confusion"]
        self.confusion[split] = measure.compute().cpu()
        measure.reset()


_SPLITS = ("train", "val", "test")


def _measures(num_classes: int) -> torch.nn.ModuleDict:
    measures: dict[str, Metric] = {
        "loss": MeanMetric(),
        "acc": MulticlassAccuracy(num_classes, average="micro"),
        "confusion": MulticlassConfusionMatrix(num_classes),
    }
    if num_classes > 10:
        measures["acc_top5"] = MulticlassAccuracy(num_classes, average="micro", top_k=5)
    return torch.nn.ModuleDict(measures)
