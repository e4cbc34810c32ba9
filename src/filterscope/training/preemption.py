"""Stopping between two steps without losing one, checkpoints inside long epochs, and the end of a diverged run."""

import time
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pydantic import NonNegativeFloat
from torchmetrics import Metric

from filterscope.errors import UserError
from filterscope.runtime.processes import gather, ranks
from filterscope.runtime.signals import Stopped, stop_request
from filterscope.training.checkpoints import RunCheckpoints
from filterscope.training.metrics_log import find_callback
from filterscope.training.resume import resume_conditions

SAVE, LEAVE = 1, 2  # a signal's number is added to the latter


class FiniteLoss(pl.Callback):
    """Ends a run whose loss has become NaN or infinite with an error, before anything of it reaches a checkpoint.

    Not `EarlyStopping(check_finite=True)`, which looks once an epoch and ends the run as if it were complete.

    In float16 a few losses may overflow: the scaler skips such steps and goes on with a smaller scale. There 20 losses
    in a row must not be finite, or the last one of an epoch.

    Args:
        every_steps: how often the loss on a GPU is checked, because each check waits for the GPU.
    """

    def __init__(self, *, every_steps: int = 20) -> None:
        super().__init__()
        self.every_steps = every_steps
        self._since: torch.Tensor | None = None  # the first step whose loss was not finite, -1: all were

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note whether the loss of this step is finite, without waiting for the device."""
        finite = outputs["loss"].detach().isfinite()
        since = torch.full_like(finite, -1, dtype=torch.int64) if self._since is None else self._since
        since = torch.where(finite | (since >= 0), since, trainer.global_step)
        self._since = torch.where(finite, -1, since) if trainer.precision == "16-mixed" else since
        if finite.device.type == "cpu" or (batch_idx + 1) % self.every_steps == 0:
            self.check(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check the last steps of the epoch and its validation."""
        self.check(trainer)
        loss = trainer.callback_metrics.get("val/loss")
        if loss is not None and not torch.isfinite(loss):
            raise _diverged(trainer, "the validation loss is not finite")

    def check(self, trainer: pl.Trainer) -> None:
        """Raise a `UserError` if the training has diverged; it names the step since which."""
        since = -1 if self._since is None else int(self._since)
        needed = 20 if trainer.precision == "16-mixed" and not trainer.is_last_batch else 1
        if 0 <= since <= trainer.global_step + 1 - needed:
            raise _diverged(trainer, f"the loss is not finite since step {since}")


class Preemption(pl.Callback):
    """Stops between two steps after a signal, with `midway.ckpt` written, and writes one regularly in long epochs.

    All processes of a run stop at the same step. The metric state of each process is part of the checkpoint. Needs
    `RunCheckpoints` among the trainer's callbacks; without it the run stops without a checkpoint.

    Args:
        every_minutes: how much of an epoch may be lost when the process dies; None: all of it.
    """

    def __init__(self, *, every_minutes: NonNegativeFloat | None = None) -> None:
        super().__init__()
        self.every_minutes = every_minutes
        self._agreed = 0
        self._group: Any = None
        self._pending: tuple[torch.Tensor, Any] | None = None
        self._metric_states: list[list[dict[str, torch.Tensor]]] | None = None
        self._saved_at = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Handle the signals in place of Lightning, whose handler communicates with other processes."""
        if trainer.world_size > 1 and self._group is None:
            self._group = dist.new_group(backend="gloo")
        stop_request.install()
        stop_request.deferred = True
        self._saved_at = time.monotonic()
        if stop_request.requested is not None:
            self._agreed = LEAVE + stop_request.requested

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Handle the signals in place of Lightning, and stop if one has come."""
        stop_request.install()
        if not stop_request.deferred:
            stop_request.check()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Handle the signals in place of Lightning, and stop if one has come."""
        self.on_validation_start(trainer, pl_module)

    def on_test_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Stop if a signal has come whose exception was lost inside a destructor."""
        stop_request.check()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop between two epochs if a signal has come."""
        self._saved_at = time.monotonic()
        self._stop_if_requested()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop before the test if a signal has come."""
        self._stop_if_requested()
        stop_request.deferred = False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save, or save and stop, once all processes agree and the optimizer has stepped."""
        self._vote(trainer)
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if not self._agreed or not stepped or trainer.is_last_batch:
            return  # an epoch whose batches are done is finished first, or its images would count twice
        if finite_loss := find_callback(trainer, FiniteLoss):
            finite_loss.check(trainer)
        self._metric_states = self._gather_metric_states(pl_module)
        if checkpoints := find_callback(trainer, RunCheckpoints):
            checkpoints.save_midway(trainer)
        self._metric_states = None
        self._saved_at = time.monotonic()
        agreed, self._agreed = self._agreed, 0
        if agreed >= LEAVE:
            raise Stopped(agreed - LEAVE)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the metric states into a checkpoint inside an epoch."""
        if self._metric_states is not None:
            midway = {"conditions": resume_conditions(trainer), "metrics": self._metric_states}
            checkpoint.setdefault("filterscope", {})["midway"] = midway

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore the metric states of this process."""
        midway = checkpoint.get("filterscope", {}).get("midway")
        if midway is None:
            return
        for metric, state in zip(_metrics_of(pl_module), midway["metrics"][trainer.global_rank], strict=True):
            for name in metric.metric_state:
                setattr(metric, name, state[name].to(metric.device))

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Let signals act at once again; after a fault of this process, end the processes it has started."""
        stop_request.deferred = False
        if not isinstance(exception, Stopped):
            ranks.kill()

    def _vote(self, trainer: pl.Trainer) -> None:
        """Learn what all processes have agreed on after the last step, and tell them what this one wants now."""
        wish = self._wish(trainer)
        if self._group is None:
            self._agreed = max(self._agreed, wish)
            return
        self._read_vote()
        vote = torch.tensor(wish)  # read after the next step, so that nobody waits
        self._pending = (vote, dist.all_reduce(vote, dist.ReduceOp.MAX, self._group, async_op=True))

    def _read_vote(self) -> None:
        if self._pending is not None:
            result, work = self._pending
            work.wait()
            self._agreed, self._pending = max(self._agreed, int(result)), None

    def _stop_if_requested(self) -> None:
        self._read_vote()
        wish = max(self._agreed, 0 if stop_request.requested is None else LEAVE + stop_request.requested)
        if self._group is not None:
            vote = torch.tensor(wish)
            dist.all_reduce(vote, dist.ReduceOp.MAX, self._group)
            wish = int(vote)
        self._agreed = 0
        if wish >= LEAVE:
            raise Stopped(wish - LEAVE)

    def _wish(self, trainer: pl.Trainer) -> int:
        """Return what this process wants after the current step: `LEAVE` and the signal, `SAVE`, or 0 for neither."""
        if stop_request.requested is not None:
            return LEAVE + stop_request.requested
        due = self.every_minutes is not None and time.monotonic() - self._saved_at > 60 * self.every_minutes
        return SAVE if due and trainer.is_global_zero else 0

    def _gather_metric_states(self, module: pl.LightningModule) -> list[list[dict[str, torch.Tensor]]]:
        own = [
            {name: torch.as_tensor(value).cpu() for name, value in metric.metric_state.items()}
            for metric in _metrics_of(module)
        ]
        return gather(own, self._group)


def _metrics_of(module: pl.LightningModule) -> list[Metric]:
    return [each for each in module.modules() if isinstance(each, Metric)]


def _diverged(trainer: pl.Trainer, how: str) -> UserError:
    """Return the error for a loss that is not finite, with what may help and what is left."""
    rate = max(group["lr"] for group in trainer.optimizers[0].param_groups)
    advice = f"a smaller learning rate (it was {rate:.3g}; optimizer.lr={rate / 10:.2g})"
    if trainer.gradient_clip_val is None:
        advice += ", trainer.gradient_clip_val=1"
    if trainer.precision != "32-true":
        advice += ", trainer.precision=32-true"
    message = f"training diverged: {how} (epoch {trainer.current_epoch + 1}); try {advice}"
    checkpoints = find_callback(trainer, RunCheckpoints)
    if checkpoints and checkpoints.last_path.is_file():
        message += f"; {checkpoints.last_path} holds the network of the epoch before"
    return UserError(message)
