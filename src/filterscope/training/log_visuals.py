"""The callback that shows after every epoch what the network has learned."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from filterscope.data.datamodule import ImageDataModule
from filterscope.errors import UserError
from filterscope.models.adapter import as_classifier, find_network
from filterscope.models.classifier import Classifier
from filterscope.training.metrics_log import MetricsLog
from filterscope.visuals.output.outputs import Output, Picture, Table
from filterscope.visuals.output.writer import write_outputs
from filterscope.visuals.visual import (
    Examples,
    Visual,
    VisualState,
    recording_validation,
    render,
    resolve_visuals,
    run_workers,
)


class LogVisuals(pl.Callback):
    """Draws the visuals before training and after every epoch, on rank 0, and leaves no trace in the training.

    The other ranks do their share of what visuals hand out meanwhile.

    It works in any Lightning training, of `pytorch_lightning` and of `lightning.pytorch`:
    `LogVisuals(["filters", "activations"], examples=images, mean=…, std=…)`. The pictures go to the loggers that take
    pictures (TensorBoard, Weights & Biases) and to `folder`, the numbers also to `trainer.callback_metrics` on every
    rank, where checkpoints and early stopping can watch them. Validation is watched on every rank. What visuals
    remember from epoch to epoch, and the examples, are part of the checkpoint.

    Args:
        visuals: names, visuals, or visuals by name.
        folder: the run folder, or None for the loggers alone.
        log: gets the numbers for the row of their epoch.
        examples: the images to look at, `(N, C, H, W)` in [0, 1]; None: `num_examples` validation images of a
            datamodule of ours.
        num_examples: how many validation images to take.
        seed: which ones.
        network: the attribute of the LightningModule that is the network, where it is no `Classifier`; None: the only
            one that holds convolutions, else the LightningModule itself.
        mean: of the normalisation that such a network was trained with, per channel; None: it sees images as they are.
        std: likewise.
    """

    def __new__(cls, *_args: Any, **_knobs: Any) -> "LogVisuals":
        """Become a callback of `lightning.pytorch` too, where that is in use: its Trainer takes no others."""
        theirs = sys.modules.get("lightning.pytorch")
        if theirs is not None and not issubclass(cls, theirs.Callback):
            cls = type(cls.__name__, (cls, theirs.Callback), {"__module__": cls.__module__, "__doc__": cls.__doc__})
        return super().__new__(cls)

    def __init__(
        self,
        visuals: Iterable[str | Visual] | Mapping[str, Visual],
        *,
        folder: Path | str | None = None,
        log: MetricsLog | None = None,
        examples: Examples | Tensor | None = None,
        num_examples: int = 16,
        seed: int = 0,
        network: str | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.visuals = resolve_visuals(visuals)
        self.folder = None if folder is None else Path(folder)
        self.log_row = log
        self.examples = Examples(images=examples) if isinstance(examples, Tensor) else examples
        self.num_examples = num_examples
        self.seed = seed
        self.network = network
        self.mean, self.std = mean, std
        self.state = VisualState()
        self.summaries: dict[str, Table] = {}
        self._found: Classifier | None = None
        self._packed: dict[str, Any] | None = None  # the examples as checkpoints hold them
        self._watching = ExitStack()
        self._take: Callable[[Tensor | None], None] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw epoch 0, the network before training."""
        if trainer.current_epoch == 0 and trainer.global_step == 0:
            self.draw(trainer, pl_module, epoch=0)
        else:
            self._publish(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the epoch that has just ended."""
        self.draw(trainer, pl_module, epoch=trainer.current_epoch + 1)

    def draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *, epoch: int) -> None:
        """Draw everything as it is after `epoch` finished epochs."""
        if not self.visuals:
            return
        self.state.epoch, self.state.last = epoch, epoch == trainer.max_epochs
        numbers: dict[str, float] = {}
        if trainer.is_global_zero:
            shown = self._show(trainer, pl_module, epoch=epoch)
            numbers = {tag: output for tag, output in shown.items() if isinstance(output, float)}
        else:
            run_workers(self.visuals, self._classifier(trainer, pl_module), self.state)
        self.state.gathered.clear()
        numbers = trainer.strategy.broadcast(numbers)
        self.state.store.setdefault("numbers", {}).update(numbers)
        self._publish(trainer)
        if self.log_row is not None:
            self.log_row.add(trainer, numbers, epoch=epoch)

    def conclude(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *, epoch: int) -> None:
        """Let those look that do so when the training has ended, at the network as it was after `epoch` epochs."""
        self.state.ended = True
        if trainer.is_global_zero:
            self._show(trainer, pl_module, epoch=epoch)
        else:
            run_workers(self.visuals, self._classifier(trainer, pl_module), self.state)
        self.state.ended = False

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Watch the validation before training, or that of an epoch."""
        before = trainer.state.fn == TrainerFn.VALIDATING
        if not self.visuals or trainer.sanity_checking or (before and trainer.global_step > 0):
            return
        self.state.epoch = 0 if before else trainer.current_epoch + 1
        classifier = self._classifier(trainer, pl_module)
        self._take = self._watching.enter_context(recording_validation(self.visuals, classifier, self.state))

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Hand on the labels of a batch."""
        del trainer, pl_module, outputs, batch_idx, dataloader_idx
        if self._take is not None:
            self._take(_labels(batch))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Watch no longer."""
        del trainer, pl_module
        self._take = None
        self._watching.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Watch no longer, and ask no other process for what it saw."""
        del trainer, pl_module
        self._take = None
        self._watching.__exit__(type(exception), exception, exception.__traceback__)

    def _show(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *, epoch: int) -> Mapping[str, Output]:
        shown = render(
            self.visuals,
            self._classifier(trainer, pl_module),
            self._examples(trainer),
            self.state,
            precision=trainer.precision_plugin.forward_context,
        )
        write_outputs(shown, folder=self.folder, writer=_writer(trainer), epoch=epoch)
        for logger in trainer.loggers:
            if hasattr(logger, "log_image"):  # Weights & Biases, and who else speaks as it does
                _log_pictures(logger, shown, step=trainer.global_step)
        self.summaries |= {tag: each for tag, each in shown.items() if isinstance(each, Table) and each.terminal}
        return shown

    def _classifier(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Classifier:
        """Return the network that is trained: a classifier of ours, or one made around whatever it is."""
        own = getattr(pl_module, "classifier", None)
        if isinstance(own, Classifier):
            return own
        if self._found is None:
            examples = self._examples(trainer)
            self._found = as_classifier(
                find_network(pl_module, self.network),
                mean=self.mean,
                std=self.std,
                image_size=int(examples.images.shape[-1]),
                class_names=examples.class_names,
            )
        return self._found.to(pl_module.device)

    def _publish(self, trainer: pl.Trainer) -> None:
        """Put the newest numbers, which may be older than this epoch, where other callbacks look for metrics."""
        known = self.state.store.get("numbers", {})
        trainer.callback_metrics.update({tag: torch.tensor(value) for tag, value in known.items()})

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put examples and past into the checkpoint, where `visualize.py` finds them too."""
        del pl_module
        about = checkpoint.setdefault("filterscope", {})
        about["visual_state"] = {"epoch": self.state.epoch, "store": self.state.store}
        if self._packed is None:
            self._packed = pack_examples(self._examples(trainer))
        about["examples"] = self._packed

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take up what earlier epochs left."""
        del trainer, pl_module
        about = checkpoint.get("filterscope", {})
        self.state = VisualState(**about["visual_state"]) if "visual_state" in about else VisualState()

    def _examples(self, trainer: pl.Trainer) -> Examples:
        if self.examples is None:
            data: Any = getattr(trainer, "datamodule", None)
            if not hasattr(data, "examples"):
                raise UserError("LogVisuals needs images to look at: give examples=images, (N, C, H, W) in [0, 1]")
            self.examples = examples_of(data, self.num_examples, self.seed)
        return self.examples


def _labels(batch: Any) -> Tensor | None:
    """Return the classes of a batch `(images, classes, …)`, None where it is something else."""
    labels = batch[1] if isinstance(batch, (list, tuple)) and len(batch) > 1 else None
    known = isinstance(labels, Tensor) and labels.dim() == 1 and not labels.is_floating_point()
    return labels if known else None


def _writer(trainer: pl.Trainer) -> Any:
    """Return what writes TensorBoard's event file, None where nothing does."""
    logger: Any
    for logger in trainer.loggers:
        # By name, because `lightning.pytorch` has a class of its own.
        if any(kind.__name__ == "TensorBoardLogger" for kind in type(logger).__mro__):
            return logger.experiment
    return None


def _log_pictures(logger: Any, shown: Mapping[str, Output], *, step: int) -> None:
    for tag, output in shown.items():
        if isinstance(output, Picture):
            logger.log_image(key=tag, images=[output.pixels], caption=[output.description], step=step)
    numbers = {tag: output for tag, output in shown.items() if isinstance(output, float)}
    if numbers:
        logger.log_metrics(numbers, step=step)


def examples_of(data: ImageDataModule, count: int, seed: int = 0) -> Examples:
    """Return validation images of a datamodule, spread over the classes; it gives more of them when asked."""
    images, labels, names = data.examples(count, seed)
    return Examples(
        images=images,
        labels=labels if data.class_names else None,
        names=names,
        class_names=tuple(data.class_names),
        more=partial(examples_of, data, seed=seed),
    )


def pack_examples(examples: Examples) -> dict[str, Any]:
    """Return the examples as plain data; images as uint8."""
    return {
        "images": (examples.images * 255).round().to(torch.uint8),
        "labels": examples.labels,
        "class_names": list(examples.class_names),
        "names": list(examples.names),
    }


def unpack_examples(packed: Mapping[str, Any]) -> Examples:
    """Return the examples that `pack_examples` packed."""
    images: Tensor = packed["images"]
    return Examples(
        images=images.float() / 255,
        labels=packed["labels"],
        class_names=tuple(packed["class_names"]),
        names=tuple(packed["names"]),
    )
