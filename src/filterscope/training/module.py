"""The Lightning module: a classifier, a finetune policy, an optimizer and metrics."""

import hashlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import pytorch_lightning as pl
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy

from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.split_network import SplitNetwork
from filterscope.runtime.processes import gather
from filterscope.training.mix import Views, logits_over_views
from filterscope.training.policies import Policy
from filterscope.training.schedules import takes_total_steps, try_schedule

_TRIED_STEPS = 200  # of a schedule that does not know the length of the run
_SPLITS = ("train", "val", "test")


class Features(NamedTuple):
    """The trunk's outputs, which stand in for the images of a batch."""

    outputs: Tensor


class FinetuneModule(pl.LightningModule):
    """Trains a classifier with cross-entropy and measures its accuracy.

    Logged per epoch, over all ranks: `train/loss train/acc val/loss val/acc test/loss test/acc`, and `…/acc_top5` for
    more than ten classes. `records["val"]` and `records["test"]` are `(4, N)`: label, predicted class, its probability
    and the loss of each image, in the order of the split.

    Args:
        classifier: is trained in place.
        policy: what is trained, when, and how fast.
        optimizer: makes the optimizer from parameter groups; its `lr` and `weight_decay` are those of the head.
        schedule: makes the learning rate schedule from the optimizer; if it takes `total_steps` and was given none, it
            gets the number of times that it is advanced.
        schedule_interval: advance the schedule after every optimizer `step` or every `epoch`. A `ReduceLROnPlateau`
            watches `val/loss`.
        seed: dropout depends on (seed, step, rank) alone, so that a resumed run draws the same numbers.
        label_smoothing: of the training loss, 0 to 1.
        class_weights: of the training loss, `(classes,)`; None: all 1.
        mix: mixes a batch of training images and labels; None: no mixing. Training accuracy is measured with
            the labels before mixing.
        test_augment: predictions for test images are averaged over these views; None: each image is seen once.
        channels_last: run convolutions in the channels-last memory layout, which most processors prefer, instead of the
            contiguous one.
        compile_steps: compile the training step with `torch.compile`; the first steps take long.
        about: plain data that every checkpoint carries under `filterscope` (config, class names, image size).
    """

    class_weights: Tensor | None

    def __init__(
        self,
        classifier: Classifier,
        *,
        policy: Policy,
        optimizer: Callable[..., Optimizer],
        schedule: Callable[..., LRScheduler],
        schedule_interval: Literal["step", "epoch"] = "step",
        seed: int = 0,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
        mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
        test_augment: Views | None = None,
        channels_last: bool = True,
        compile_steps: bool = False,
        about: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.classifier = classifier.to(memory_format=torch.channels_last) if channels_last else classifier
        self.policy = policy
        self.optimizer = optimizer
        self.schedule = schedule
        self.schedule_interval = schedule_interval
        self.seed = seed
        self.label_smoothing = label_smoothing
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.mix = mix
        self.test_augment = test_augment
        self.channels_last = channels_last
        self.about = about or {}
        self.metrics = torch.nn.ModuleDict({f"{split}_": _metrics(classifier.num_classes) for split in _SPLITS})
        self.records: dict[str, Tensor] = {}
        self._batches: list[Tensor] = []  # the records of the running evaluation
        self.split_network: SplitNetwork | None = None
        self._backbone_trains = True
        # Only for training steps: validation and visuals come and go with hooks, which would compile again.
        self._compiled: Callable[[Tensor], Tensor] | None = torch.compile(self._logits) if compile_steps else None
        policy.freeze(classifier)

    @property
    def epoch(self) -> int:
        """The running epoch, from 0; unlike `current_epoch` it is right after a resume too."""
        progress: Any = self.trainer.fit_loop.epoch_progress.current
        return int(progress.processed)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images in [0, 1]."""
        compute = self._compiled if self._compiled is not None and self.training else self._logits
        return compute(self._to_layout(images))

    def trunk_function(self, network: SplitNetwork) -> Callable[[Tensor], Tensor]:
        """Return a function from images to features with the device, layout and precision of `forward`."""

        def compute(images: Tensor) -> Tensor:
            with torch.no_grad(), self.trainer.precision_plugin.forward_context():
                return network.features(self._to_layout(images.to(self.device))).cpu()

        return compute

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a training batch for labels, `(N,)`, or for class probabilities, `(N, classes)`."""
        return F.cross_entropy(logits.float(), labels, weight=self.class_weights, label_smoothing=self.label_smoothing)

    def configure_optimizers(self) -> Any:
        """Build the optimizer and the schedule.

        Raises:
            UserError: their options are not possible, or the run has no length that the schedule needs.
        """
        given = getattr(self.optimizer, "keywords", {})
        groups = self.policy.groups(self.classifier, given.get("lr", 1e-3), given.get("weight_decay", 0.0))
        try:
            optimizer = self.optimizer(groups)
        except (ValueError, TypeError) as error:
            raise error if isinstance(error, UserError) else UserError(f"optimizer: {error}") from error
        length = self._schedule_length()
        stand_in = self.optimizer([{**group, "params": [torch.zeros(1, requires_grad=True)]} for group in groups])
        try_schedule(lambda: self.schedule(stand_in, **length), stand_in, steps=length.get("total_steps", _TRIED_STEPS))
        schedule = self.schedule(optimizer, **length)
        settings = {"scheduler": schedule, "interval": self.schedule_interval, "monitor": "val/loss"}
        return {"optimizer": optimizer, "lr_scheduler": settings}

    def on_train_start(self) -> None:
        """Prepare the epoch in which a run is resumed."""
        self.on_train_epoch_start()

    def on_train_epoch_start(self) -> None:
        """Put frozen modules into evaluation mode, and compute no gradients of a backbone that is not trained."""
        self.classifier.backbone.train()
        if self.policy.freezes_trunk(self.epoch):
            for module in self.policy.frozen_modules(self.classifier):
                module.eval()
        self._backbone_trains = self.policy.trains_backbone(self.epoch)
        wrapped = self.trainer.strategy.model
        if isinstance(wrapped, DistributedDataParallel):
            # DDP waits for the gradients of all parameters that require them, also before the backbone's release.
            wrapped.require_backward_grad_sync = not self._before_release

    def on_train_batch_start(self, _batch: object, _index: int) -> None:
        """Make the random numbers of the step depend on (seed, step, rank) only."""
        key = f"{self.seed}/{self.global_step}/{self.global_rank}".encode()
        seed = int.from_bytes(hashlib.sha256(key).digest()[:7], "big")
        # Not torch.manual_seed: before CUDA is used, it stores every call with its stack, without bound.
        torch.default_generator.manual_seed(seed)
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Average the gradients of the head over all processes while DDP does not, before the backbone's release."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if not self._before_release or self.trainer.world_size == 1 or not gradients:
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients]) / self.trainer.world_size
        dist.all_reduce(flat)
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def training_step(self, batch: tuple[Tensor | Features, Tensor], _index: int) -> Tensor:
        """Return the loss of a batch of images or cached features."""
        inputs, labels = batch
        targets = labels
        if isinstance(inputs, Features):
            assert self.split_network is not None
            logits = self._train_forward(inputs.outputs, self.split_network.logits)
        else:
            if self.mix is not None:
                inputs, targets = self.mix(inputs, labels)
            logits = self._train_forward(inputs)
        loss = self.loss(logits, targets)
        self._update_metrics("train", logits.detach(), labels, loss.detach())
        return loss

    def validation_step(self, batch: tuple[Tensor | Features, Tensor], _index: int) -> Tensor | None:
        """Measure a validation batch, and return the features of its images if the network is split."""
        return self._evaluate("val", batch)

    def test_step(self, batch: tuple[Tensor | Features, Tensor], _index: int) -> None:  # noqa: PT019
        """Measure a test batch."""
        self._evaluate("test", batch)

    def on_validation_epoch_start(self) -> None:
        """Forget the predictions of an evaluation that was interrupted."""
        self._batches.clear()

    def on_validation_epoch_end(self) -> None:
        """Store the predictions for the validation images."""
        self._store_record("val")

    def on_test_epoch_end(self) -> None:
        """Store the predictions for the test images."""
        self._store_record("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the checkpoint self-contained."""
        checkpoint.setdefault("filterscope", {}).update({**self.about, "records": dict(self.records)})

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the predictions: resuming a run that only lacks its test runs no validation."""
        self.records = dict(checkpoint.get("filterscope", {}).get("records", {}))

    def _train_forward(self, inputs: Tensor, forward: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        try:
            return (forward or self)(inputs)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UserError(
                f"batch norm cannot train on one value per channel (a batch of {len(inputs)} image); "
                "choose a larger data.batch_size or data.image_size"
            ) from error

    def _schedule_length(self) -> dict[str, int]:
        """Return `total_steps` if the schedule takes it and was given none."""
        if not takes_total_steps(self.schedule):
            return {}
        steps = self.trainer.estimated_stepping_batches
        if self.schedule_interval == "epoch":
            steps = -1 if self.trainer.max_epochs is None else self.trainer.max_epochs
        if not 0 <= steps < float("inf"):
            raise UserError("schedule: it needs the length of the run; give trainer.max_epochs, or another schedule")
        return {"total_steps": max(1, int(steps))}

    def _evaluate(self, split: str, batch: tuple[Tensor | Features, Tensor]) -> Tensor | None:
        inputs, labels = batch
        features: Tensor | None = None
        if split == "test" and self.test_augment is not None and isinstance(inputs, Tensor):
            logits = logits_over_views(self, inputs, self.test_augment)
        elif self.split_network is None:
            logits = self(inputs).float()
        else:
            if isinstance(inputs, Features):
                features = inputs.outputs
            else:
                features = self.split_network.features(self._to_layout(inputs))
            logits = self.split_network.logits(features).float()
        losses = F.cross_entropy(logits, labels, reduction="none")
        self._update_metrics(split, logits, labels, losses.mean())
        confidence, predicted = logits.softmax(1).max(1)
        self._batches.append(torch.stack([labels.float(), predicted.float(), confidence, losses]))
        return features

    def _update_metrics(self, split: str, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
        for name, metric in self._metrics_of(split).items():
            if name == "loss":
                metric.update(loss, weight=len(labels))
            else:
                metric.update(logits, labels)
            # `MetricsLog` passes the values of an epoch on to the loggers.
            options = {"on_step": False, "on_epoch": True, "logger": False, "prog_bar": name in ("loss", "acc")}
            self.log(f"{split}/{name}", metric, batch_size=len(labels), **options)  # type: ignore[arg-type]

    def _logits(self, images: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._backbone_trains):
            features = self.classifier.backbone(images)
        logits: Tensor = self.classifier.head(features)
        return logits

    def _to_layout(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)

    @property
    def _before_release(self) -> bool:
        """Whether the backbone is trained later, but not in this epoch."""
        return not self._backbone_trains and any(p.requires_grad for p in self.classifier.backbone.parameters())

    def _metrics_of(self, split: str) -> dict[str, Metric]:
        return dict(self.metrics[f"{split}_"].items())  # type: ignore[operator]

    def _store_record(self, split: str) -> None:
        """Store the predictions of all processes in the order of the images, which take turns over the processes."""
        own = torch.cat(self._batches, 1).cpu() if self._batches else torch.empty(4, 0)
        self._batches.clear()
        parts = gather(own)
        record = torch.empty(4, sum(part.shape[1] for part in parts))
        for rank, part in enumerate(parts):
            record[:, rank :: len(parts)] = part
        self.records[split] = record


def _metrics(num_classes: int) -> torch.nn.ModuleDict:
    metrics: dict[str, Metric] = {
        "loss": MeanMetric(),
        "acc": MulticlassAccuracy(num_classes, average="micro"),
    }
    if num_classes > 10:
        metrics["acc_top5"] = MulticlassAccuracy(num_classes, average="micro", top_k=5)
    return torch.nn.ModuleDict(metrics)
