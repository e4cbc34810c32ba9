"""The callback that draws visuals before training, after every epoch and at the end."""

import logging
import math
import operator
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
from pydantic import TypeAdapter
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from filterscope.errors import UserError
from filterscope.models.adapter import find_network, named_part
from filterscope.models.classifier import Classifier
from filterscope.training.example_images import examples_of, pack_examples
from filterscope.training.loggers import log_numbers, run_options, show_outputs, tensorboard_writer
from filterscope.training.metrics_log import MetricsLog, find_callback
from filterscope.training.module import FinetuneModule
from filterscope.training.weight_average import averaged_weights
from filterscope.visuals.output.outputs import Output, Table
from filterscope.visuals.output.writer import write_outputs
from filterscope.visuals.visual import (
    Examples,
    Visual,
    VisualState,
    examples_from,
    recording_validation,
    render,
    resolve_visuals,
    run_workers,
    visuals_due,
)

log = logging.getLogger(__name__)

T = TypeVar("T")


_STORED: dict[str, TypeAdapter[Any]] = {
    "numbers": TypeAdapter(dict[str, float]),
    "metrics": TypeAdapter(dict[int, dict[str, float]]),
    "run": TypeAdapter(dict[str, str]),
}
"""What this callback itself keeps in the store of the visuals' state."""


class LogVisuals(pl.Callback):
    """Draw visuals before training, after every epoch and at the end, and leave the training bit-identical.

    It works in any Lightning training, of `pytorch_lightning` and of `lightning.pytorch`:
    `LogVisuals(["filters", "activations"], examples=images, mean=…, std=…)`. Pictures go to every logger that shows
    images (TensorBoard, Weights & Biases, MLflow) and to `folder`; numbers go to every logger and to
    `trainer.callback_metrics` on every rank, where checkpoints and early stopping can monitor them. Rank 0 draws, the
    other ranks share the work of visuals that hand some out. The state of the visuals and the examples are part of
    the checkpoint.

    Args:
        visuals: registered names, visuals, or visuals by name.
        folder: where pictures and tables are written, such as the run folder; None: the loggers alone or, if none of
            them shows images, the Trainer's `default_root_dir`.
        examples: the images to draw, in any form that `filterscope.look` takes, or `Examples`; None: `num_examples`
            validation images of the datamodule, which must be one of filterscope.
        num_examples: how many validation images to take.
        seed: decides which ones.
        network: the attribute of the LightningModule that holds the network; None: the network is found by running
            the LightningModule's `forward`, or else its only part with convolutions that takes images.
        mean: of the normalisation that the network was trained with, per channel; None: images enter unchanged.
        std: likewise.
        draw_end: draw the visuals of the end of training in `on_fit_end`; False: `draw_final` is called instead.
        strict: whether an error of a visual ends the training. Otherwise it is one warning, and that visual is left
            out from then on.
    """

    def __new__(cls, *_args: Any, **_options: Any) -> "LogVisuals":
        """Also derive from the `Callback` of `lightning.pytorch` if that is imported: its Trainer takes no others."""
        theirs = sys.modules.get("lightning.pytorch")
        if theirs is not None and not issubclass(cls, theirs.Callback):
            bases = {"__module__": cls.__module__, "__doc__": cls.__doc__, "_plain": cls}
            cls = type(cls.__name__, (cls, theirs.Callback), bases)
        return super().__new__(cls)

    def __init__(
        self,
        visuals: Iterable[str | Visual] | Mapping[str, Visual],
        *,
        folder: Path | str | None = None,
        examples: Any = None,
        num_examples: int = 16,
        seed: int = 0,
        network: str | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        draw_end: bool = True,
        strict: bool = False,
    ) -> None:
        super().__init__()
        self.visuals = resolve_visuals(visuals)
        self.folder = None if folder is None else Path(folder)
        self.examples, self._other_inputs = _checked(examples)
        self.num_examples = num_examples
        self.seed = seed
        self.network = network
        self.mean, self.std = mean, std
        self.draw_end = draw_end
        self.strict = strict
        self.state = VisualState()
        self.summaries: dict[str, tuple[int, Table]] = {}  # the newest tables for the terminal, with their epochs
        self._adapted: Classifier | None = None
        self._adapted_from: list[torch.nn.Module] = []  # its modules, of which it was made
        self._packed: dict[str, Any] | None = None  # the examples as checkpoints hold them
        self._recording = ExitStack()
        self._recorders: dict[str, Callable[[Tensor | None], None]] = {}
        self._warned: set[str] = set()
        # Visuals that have not been drawn with the state of a file, which may hold anything.
        self._undrawn: set[str] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without recorders, the adapter around the network, and the methods that Lightning attaches."""
        transient = ("_adapted", "_adapted_from", "_recording", "_recorders", "log", "log_dict")
        state = {name: value for name, value in vars(self).items() if name not in transient}
        return _rebuild, (getattr(type(self), "_plain", type(self)), state)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Raise a `UserError` before training for options that are wrong."""
        if self.visuals and not isinstance(getattr(pl_module, "classifier", None), Classifier):
            self._examples(trainer)
            if self.network is not None:
                named_part(pl_module, self.network)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw epoch 0, the network before training."""
        if trainer.current_epoch == 0 and trainer.global_step == 0:
            self.draw(trainer, pl_module, epoch=0)
        else:
            self._publish(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the epoch that has just ended."""
        self.draw(trainer, pl_module, epoch=trainer.current_epoch + 1)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the visuals of the end of training, with the network as it is after the last epoch."""
        if self.draw_end:
            self.draw_final(trainer, pl_module, epoch=trainer.current_epoch)

    def draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *, epoch: int) -> None:
        """Draw the visuals that are due after `epoch` finished epochs."""
        self._remember_run(trainer, pl_module, epoch=epoch)
        if not self.visuals:
            return
        self.state.epoch, self.state.last = epoch, epoch == trainer.max_epochs
        self.state.epoch_images = _images_per_epoch(trainer)
        with averaged_weights(trainer, pl_module):
            shown = self._draw(trainer, pl_module, epoch=epoch)
        self.state.gathered.clear()
        numbers = {tag: output for tag, output in shown.items() if isinstance(output, float)}
        numbers = trainer.strategy.broadcast(numbers)
        self.state.store.setdefault("numbers", {}).update(numbers)
        self._publish(trainer)
        if metrics_log := find_callback(trainer, MetricsLog):
            metrics_log.add(trainer, numbers, epoch=epoch)

    def draw_final(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *, epoch: int) -> None:
        """Draw the visuals of the end of training, with the network as it was after `epoch` epochs."""
        last, self.state.epoch, self.state.ended = self.state.epoch, epoch, True
        self._draw(trainer, pl_module, epoch=epoch)
        self.state.epoch, self.state.ended = last, False

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the validation before training, or that of an epoch."""
        before = trainer.state.fn == TrainerFn.VALIDATING
        if not self.visuals or trainer.sanity_checking or (before and trainer.global_step > 0):
            return
        self.state.epoch = 0 if before else trainer.current_epoch + 1
        classifier = self._classifier(trainer, pl_module)
        if classifier is None:
            return
        self._recording.enter_context(torch.compiler.set_stance("force_eager"))  # compiled code has no hooks
        for name, visual in self.visuals.items():
            with self._reported(name):
                record = partial(recording_validation, {name: visual}, classifier, self.state)
                self._recorders[name] = self._with_state(name, lambda: self._recording.enter_context(record()))  # noqa: B023

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Pass the labels of a batch to the recorders."""
        classifier = self._classifier(trainer, pl_module) if self._recorders else None
        if classifier is None:
            return
        labels = self._labels(batch, classifier.label_count)
        for name, record in list(self._recorders.items()):
            with self._reported(name):
                record(labels)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End recording; the sums over all ranks are in the state."""
        self._recorders.clear()
        with self._reported("validation"):
            self._recording.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """End recording without waiting for other ranks."""
        self._recorders.clear()
        self._recording.__exit__(type(exception), exception, exception.__traceback__)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the examples and the state of the visuals into the checkpoint, where `visualize.py` finds them too."""
        about = checkpoint.setdefault("filterscope", {})
        about["visual_state"] = {"epoch": self.state.epoch, "store": self.state.store}
        if self._packed is None:
            self._packed = pack_examples(self._examples(trainer))
        about["examples"] = self._packed

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore the state of the visuals."""
        about = checkpoint.get("filterscope", {})
        self.state = VisualState(**about["visual_state"]) if "visual_state" in about else VisualState()
        for name, kind in _STORED.items():
            kind.validate_python(dict(self.state.store).get(name, {}))
        self._undrawn = set(self.visuals)

    def _draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *, epoch: int) -> dict[str, Output]:
        """Draw on rank 0, help with it on the others, and return the outputs by tag (none on other ranks)."""
        classifier, outputs = self._classifier(trainer, pl_module), dict[str, Output]()
        if classifier is None:
            return outputs
        if not trainer.is_global_zero:
            run_workers(self.visuals, classifier, self.state)
            return outputs
        examples, names = self._examples(trainer), {id(visual): name for name, visual in self.visuals.items()}
        precision = trainer.precision_plugin.forward_context
        for visual in visuals_due(self.visuals, self.state):
            name = names[id(visual)]
            with self._reported(name):
                draw = partial(render, {name: visual}, classifier, examples, self.state, precision=precision)
                shown = self._with_state(name, draw)
                self._undrawn.discard(name)
                outputs |= shown
                with self._reported("writing"):  # at once: the first pictures are there while others are drawn
                    self._write(trainer, shown, epoch=epoch)
        tables = {tag: each for tag, each in outputs.items() if isinstance(each, Table) and each.terminal}
        self.summaries |= {tag: (epoch, table) for tag, table in tables.items()}
        return outputs

    def _remember_run(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *, epoch: int) -> None:
        """Store the options of the run and the metrics of the epoch, for visuals that show them."""
        metrics_log, own = find_callback(trainer, MetricsLog), self.state.store.get("numbers", {})
        metrics: Any = trainer.callback_metrics
        if metrics_log is not None and metrics_log.rows:
            metrics = metrics_log.rows.get(epoch, {})
        finite = {name: float(value) for name, value in metrics.items() if name not in own and math.isfinite(value)}
        self.state.store.setdefault("metrics", {})[epoch] = finite
        if isinstance(pl_module, FinetuneModule) and (config := pl_module.about.get("config")):
            self.state.store["run"] = {name: str(value) for name, value in run_options(config).items()}

    def _write(self, trainer: pl.Trainer, outputs: Mapping[str, Output], *, epoch: int) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return  # it is to leave no files
        writer = tensorboard_writer(trainer)
        if self.folder is None and not show_outputs(trainer, {}, epoch=epoch):
            self.folder = Path(trainer.default_root_dir)
            log.info("no logger shows images; pictures are written to %s", self.folder / "pictures")
        write_outputs(outputs, folder=self.folder, writer=writer, epoch=epoch)
        if writer is not None:
            writer.flush()
        show_outputs(trainer, outputs, epoch=epoch)
        numbers = {tag: output for tag, output in outputs.items() if isinstance(output, float)}
        log_numbers(trainer, numbers, epoch=epoch, but=writer)

    def _with_state(self, name: str, draw: Callable[[], T]) -> T:
        """Call a function of a visual, and once more without the state of a file if it may be that which fails."""
        try:
            return draw()
        except Exception as error:
            outside = isinstance(error, UserError | OSError | MemoryError | torch.OutOfMemoryError)
            if outside or name not in self._undrawn:
                raise
            stored = dict(self.state.store)
            self.state.store.clear()
            try:
                result = draw()
            except Exception:
                self.state.store.update(stored)  # the state is not at fault
                raise
            self._undrawn.clear()
            self._warn("state", f"the state of the visuals in the checkpoint does not fit ({error}) and is left out")
            return result

    @contextmanager
    def _reported(self, name: str) -> Iterator[None]:
        """Turn an error inside the block into one warning, unless the callback is strict."""
        try:
            yield
        except Exception as error:
            if self.strict:
                raise
            self._recorders.pop(name, None)
            if name in self.visuals:
                self.visuals = {key: visual for key, visual in self.visuals.items() if key != name}
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            self._warn(name, f"{name} is left out from now on ({reason}); training goes on")

    def _warn(self, key: str, message: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            log.warning("LogVisuals: %s", " ".join(message.split())[:500])

    def _labels(self, batch: Any, count: int) -> Tensor | None:
        """Return the labels `(N,)` of a batch `(images, labels, …)`, or None if these are no class numbers."""
        labels = batch[1] if isinstance(batch, (list, tuple)) and len(batch) > 1 else None
        if not isinstance(labels, Tensor) or labels.dim() != 1 or labels.is_floating_point() or len(labels) == 0:
            return None
        labels = labels.long()
        if isinstance(batch[0], Tensor) and len(batch[0]) != len(labels):
            self._warn("labels", f"{len(labels)} labels for {len(batch[0])} images, so classes are left out")
            return None
        if int(labels.min()) < 0 or int(labels.max()) >= count:
            known = f"class numbers from 0 to {count - 1}" if count else "of classes, for the network predicts none"
            self._warn("labels", f"labels are not {known}, so classes are left out")
            return None
        return labels

    def _classifier(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Classifier | None:
        """Return the network that is trained: a `Classifier`, or an adapter around any other network.

        None if no network is found that takes the examples; that is one warning.
        """
        own = getattr(pl_module, "classifier", None)
        if isinstance(own, Classifier):
            return own
        modules = list(pl_module.modules())
        same = len(modules) == len(self._adapted_from) and all(map(operator.is_, modules, self._adapted_from))
        if self._adapted is None or not same:
            if not same and self._adapted is not None:  # another training, or layers were replaced in this one
                self.state.store.clear()
            examples = self._examples(trainer)
            self._adapted_from = modules
            options: dict[str, Any] = {"mean": self.mean, "std": self.std, "others": self._other_inputs}
            try:
                self._adapted = find_network(
                    pl_module, self.network, examples.images, class_names=examples.class_names, **options
                )
            except Exception as error:
                if self.strict:
                    raise
                self._adapted, self.visuals = None, {}
                self._warn("network", f"nothing is drawn ({error}); training goes on")
        return self._adapted

    def _publish(self, trainer: pl.Trainer) -> None:
        """Put the newest numbers, which may be of an earlier epoch, where other callbacks look for metrics."""
        known = self.state.store.get("numbers", {})
        trainer.callback_metrics.update({tag: torch.tensor(value) for tag, value in known.items()})

    def _examples(self, trainer: pl.Trainer) -> Examples:
        if self.examples is None:
            data: Any = getattr(trainer, "datamodule", None)
            if not hasattr(data, "examples"):
                raise UserError("LogVisuals needs images to draw: give examples=images, (N, C, H, W) in [0, 1]")
            self.examples = examples_of(data, self.num_examples, self.seed)
        return self.examples


def _images_per_epoch(trainer: pl.Trainer) -> int | None:
    """Return the number of training images of an epoch over all ranks, or None if the loader does not tell it."""
    size = getattr(trainer.train_dataloader, "batch_size", None)
    size = size or getattr(getattr(trainer.train_dataloader, "batch_sampler", None), "batch_size", None)
    batches = trainer.num_training_batches
    return None if size is None or math.isinf(batches) else int(batches) * int(size) * trainer.world_size


def _checked(examples: Any) -> tuple[Examples | None, tuple[Any, ...]]:
    """Return examples in [0, 1], and further inputs of the network."""
    if isinstance(examples, Examples):
        checked, others = examples_from(examples.images)
        return replace(examples, images=checked.images), others
    return (None, ()) if examples is None else examples_from(examples)


def _rebuild(kind: type[LogVisuals], state: dict[str, Any]) -> LogVisuals:
    """Rebuild a pickled callback, which may have been made beside another Lightning."""
    callback = kind.__new__(kind)
    vars(callback).update(state, _adapted=None, _adapted_from=[], _recording=ExitStack(), _recorders={})
    return callback
