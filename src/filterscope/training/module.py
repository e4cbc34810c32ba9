"""The Lightning module: a classifier, a policy, an optimizer and the metrics."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.split_network import SplitNetwork
from filterscope.training.feature_cache import Features
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
        compile_steps: let `torch.compile` make the training step's forward and backward; the first ones take long.
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
        compile_steps: bool = False,
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
        self.split_network: SplitNetwork | None = None
        self._asleep = False
        # Only training steps: while others look, hooks come and go.
        self._compiled: Callable[[Tensor], Tensor] | None = torch.compile(self._logits) if compile_steps else None
        policy.freeze(classifier)

    @property
    def epoch(self) -> int:
        """The epoch that is running, from 0; right on resume too, where `current_epoch` lags behind."""
        progress: Any = self.trainer.fit_loop.epoch_progress.current
        return int(progress.processed)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images in [0, 1]."""
        compute = self._compiled if self._compiled is not None and self.training else self._logits
        return compute(self._laid_out(images))

    def trunk_function(self, halves: SplitNetwork) -> Callable[[Tensor], Tensor]:
        """Return what makes features of images as `forward` does on the way: same device, layout and precision."""

        def compute(images: Tensor) -> Tensor:
            with torch.no_grad(), self.trainer.precision_plugin.forward_context():
                return halves.features(self._laid_out(images.to(self.device))).cpu()

        return compute

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a training batch."""
        return F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)

    def configure_optimizers(self) -> Any:
        """Build optimizer and schedule, the latter advanced after every step."""
        given = getattr(self.optimizer, "keywords", {})
        groups = self.policy.groups(self.classifier, given.get("lr", 1e-3), given.get("weight_decay", 0.0))
        try:
            optimizer = self.optimizer(groups)
        except (ValueError, TypeError) as error:
            raise UserError(f"optimizer: {error}") from error
        schedule = self.schedule(optimizer, total_steps=max(1, int(self.trainer.estimated_stepping_batches)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """Do what an epoch's start would have done, where a run goes on inside the epoch."""
        self.on_train_epoch_start()

    def on_train_epoch_start(self) -> None:
        """Hold what is not trained in this epoch in evaluation mode, and compute no gradients of it."""
        self.classifier.backbone.train()
        if self.policy.is_frozen_in(self.epoch):
            for module in self.policy.frozen_modules(self.classifier):
                module.eval()
        self._asleep = not self.policy.trains_backbone(self.epoch)
        wrapped = self.trainer.strategy.model
        if isinstance(wrapped, DistributedDataParallel):
            # DDP waits for the gradients of all that requires them, and a backbone not released yet has none.
            wrapped.require_backward_grad_sync = not self._late

    def on_train_batch_start(self, _batch: object, _index: int) -> None:
        """Make what the step draws depend on (seed, step, rank) only."""
        self.seed_step()

    def seed_step(self) -> None:
        """Make what a step draws depend on (seed, step, rank) only."""
        key = f"{self.seed}/{self.global_step}/{self.global_rank}".encode()
        seed = int.from_bytes(hashlib.sha256(key).digest()[:7], "big")
        # Not torch.manual_seed: as long as CUDA is not used, that notes every call and where it came from, for ever.
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        elif self.device.type == "mps":
            torch.mps.manual_seed(seed)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Average what DDP does not: the gradients of a head whose backbone is not released yet."""
        if self._late:
            self.average_gradients([p for group in optimizer.param_groups for p in group["params"]])

    def average_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Average the gradients of those that have one over all processes."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.trainer.world_size == 1 or not gradients:
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients]) / self.trainer.world_size
        dist.all_reduce(flat)
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def on_train_batch_end(self, outputs: object, batch: object, _index: int) -> None:
        """Log what `count_steps` has counted, at the end of an epoch on features."""
        del outputs
        if batch is None:
            self._log("train", batch_size=1)

    def training_step(self, batch: tuple[Tensor, Tensor], _index: int) -> Tensor:
        """Return the loss of a batch."""
        images, labels = batch
        logits = self(images)
        loss = self.loss(logits, labels)
        self._count("train", logits.detach(), labels, loss.detach())
        return loss

    def count_steps(self, losses: Sequence[Tensor], seen: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Count steps on features by their losses and their `(logits, labels)`."""
        logits, labels = (torch.cat(each) for each in zip(*seen, strict=True))
        weights = torch.tensor([float(len(each)) for _, each in seen])
        for name, measure in self._of("train").items():
            if name == "loss":
                measure.update(torch.stack(list(losses)), weight=weights.to(self.device))
            elif name != "confusion":
                measure.update(logits, labels)

    def validation_step(self, batch: tuple[Any, Tensor], _index: int) -> Tensor | None:
        """Count a validation batch and return the features of its images where they may be kept."""
        return self._evaluate("val", batch)

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
        checkpoint.setdefault("filterscope", {}).update({**self.about, "confusion": dict(self.confusion)})

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Know what the last validation has counted: a run that was complete but for its end has no other."""
        self.confusion = dict(checkpoint.get("filterscope", {}).get("confusion", {}))

    def _evaluate(self, split: str, batch: tuple[Any, Tensor]) -> Tensor | None:
        inputs, labels = batch
        features = None
        if self.split_network is None:
            logits = self(inputs).float()
        else:
            kept = isinstance(inputs, Features)
            features = inputs.values if kept else self.split_network.features(self._laid_out(inputs))
            logits = self.split_network.logits(features).float()
        self._count(split, logits, labels, F.cross_entropy(logits, labels))
        self._of(split)["confusion"].update(logits, labels)
        return features

    def _count(self, split: str, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
        for name, measure in self._of(split).items():
            if name == "loss":
                measure.update(loss, weight=len(labels))
            elif name != "confusion":
                measure.update(logits, labels)
        self._log(split, batch_size=len(labels))

    def _log(self, split: str, *, batch_size: int) -> None:
        for name, measure in self._of(split).items():
            if name != "confusion":
                self.log(
                    f"{split}/{name}",
                    measure,
                    on_step=False,
                    on_epoch=True,
                    batch_size=batch_size,
                    logger=False,
                    prog_bar=name in ("loss", "acc"),
                )

    def _logits(self, images: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._asleep):
            features = self.classifier.backbone(images)
        logits: Tensor = self.classifier.head(features)
        return logits

    def _laid_out(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images

    @property
    def _late(self) -> bool:
        """Whether the backbone is trained later on, but not yet."""
        return self._asleep and any(p.requires_grad for p in self.classifier.backbone.parameters())

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
