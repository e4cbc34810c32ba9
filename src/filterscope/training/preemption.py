"""Stopping between two steps, losing nothing; and keeping what a long epoch has done so far, now and then."""

import os
import signal
import subprocess
import threading
import time
from typing import Annotated, Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pydantic import Field
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher
from torchmetrics import Metric

from filterscope.errors import UserError
from filterscope.runtime.signals import Stopped, stop_request
from filterscope.training.checkpoints import RunCheckpoints
from filterscope.training.resume import resume_conditions

SAVE, LEAVE = 1, 2  # with a signal's number added


class FiniteLoss(pl.Callback):
    """Ends a run whose loss has become NaN or infinite, before anything of it reaches a checkpoint.

    Args:
        every_steps: how often to look; looking waits for the GPU.
    """

    def __init__(self, *, every_steps: int = 20) -> None:
        super().__init__()
        self.every_steps = every_steps
        self._finite: torch.Tensor | None = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note whether the loss of this step is a number."""
        del pl_module, batch
        finite = outputs["loss"].detach().isfinite()
        self._finite = finite if self._finite is None else self._finite & finite
        if (batch_idx + 1) % self.every_steps == 0:
            self.check(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the whole epoch and its validation."""
        del pl_module
        self.check(trainer)
        loss = trainer.callback_metrics.get("val/loss")
        if loss is not None and not torch.isfinite(loss):
            raise UserError(_no_number("validation", trainer))

    def check(self, trainer: pl.Trainer) -> None:
        """Raise a `UserError` where the loss of a step since the last look was no number."""
        if self._finite is not None and not bool(self._finite):
            raise UserError(_no_number("training", trainer))
        self._finite = None


class Preemption(pl.Callback):
    """Leaves between two steps when a signal asks for it, with `midway.ckpt` written, and writes one now and then.

    All processes of a run stop at the same step. What the metrics of the epoch have counted so far, on each process,
    travels in the checkpoint.

    Args:
        checkpoints: writes the file.
        finite: is asked before.
        every_minutes: how much of an epoch may be lost when the process dies unasked; None: all of it.
    """

    def __init__(
        self,
        checkpoints: RunCheckpoints,
        finite: FiniteLoss,
        *,
        every_minutes: Annotated[float, Field(ge=0)] | None = None,
    ) -> None:
        super().__init__()
        self.checkpoints = checkpoints
        self.finite = finite
        self.every_minutes = every_minutes
        self._agreed = 0
        self._group: Any = None
        self._asking: tuple[torch.Tensor, Any] | None = None
        self._counted: list[list[dict[str, Any]]] | None = None
        self._children: list[subprocess.Popen[bytes]] | None = None
        self._since = time.monotonic()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Watch the processes that Lightning has started."""
        del pl_module, stage
        launcher = trainer.strategy.launcher
        if self._children is None and isinstance(launcher, _SubprocessScriptLauncher) and launcher.procs:
            # Lightning's own watch kills this process without a word; the list is what it watches.
            self._children, launcher.procs[:] = list(launcher.procs), []
            threading.Thread(target=_watch, args=(self._children,), daemon=True).start()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the signals over from Lightning, whose own handler talks to the other processes from inside it."""
        del pl_module
        if trainer.world_size > 1 and self._group is None:
            self._group = dist.new_group(backend="gloo")
        stop_request.install()
        stop_request.deferred = True
        self._since = time.monotonic()
        if stop_request.requested is not None:
            self._agreed = LEAVE + stop_request.requested

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the signals over here too."""
        del trainer, pl_module
        stop_request.install()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the signals over here too."""
        del trainer, pl_module
        stop_request.install()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave between two epochs if that was asked for meanwhile."""
        del trainer, pl_module
        self._since = time.monotonic()
        self._settle()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave before the test if that was asked for meanwhile."""
        del trainer, pl_module
        self._settle()
        stop_request.deferred = False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save, or save and leave, where all processes have agreed to and the step is a whole one."""
        del outputs, batch
        self._ask(trainer)
        whole = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if not self._agreed or not whole or trainer.is_last_batch:
            return  # an epoch that is over is finished first, or its images would count twice
        self.finite.check(trainer)
        self._counted = self._gathered(pl_module)
        self.checkpoints.keep_midway(trainer)
        self._counted = None
        self._since = time.monotonic()
        agreed, self._agreed = self._agreed, 0
        if agreed >= LEAVE:
            raise Stopped(agreed - LEAVE)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put what the metrics have counted into a checkpoint inside an epoch."""
        del pl_module
        if self._counted is not None:
            about = checkpoint.setdefault("filterscope", {})
            about["midway"] = {"shape": resume_conditions(trainer), "counted": self._counted}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Count on from there."""
        midway = checkpoint.get("filterscope", {}).get("midway")
        if midway is None:
            return
        for metric, counted in zip(_metrics(pl_module), midway["counted"][trainer.global_rank], strict=True):
            for name in metric._defaults:
                setattr(metric, name, counted["state"][name].to(metric.device))
            metric._update_count = int(counted["updates"])

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Be patient no longer; a fault of this process alone is the end of those it has started."""
        del trainer, pl_module
        stop_request.deferred = False
        if not isinstance(exception, Stopped):
            for child in self._children or ():
                child.kill()

    def _ask(self, trainer: pl.Trainer) -> None:
        wish = self._wish(trainer)
        if self._group is None:
            self._agreed = max(self._agreed, wish)
            return
        # Asked after this step, answered after the next: nobody waits for the answer.
        if self._asking is not None:
            answer, work = self._asking
            work.wait()
            self._agreed = max(self._agreed, int(answer))
        question = torch.tensor(wish)
        self._asking = (question, dist.all_reduce(question, dist.ReduceOp.MAX, self._group, async_op=True))

    def _settle(self) -> None:
        wish = max(self._agreed, 0 if stop_request.requested is None else LEAVE + stop_request.requested)
        if self._group is not None:
            if self._asking is not None:
                answer, work = self._asking
                work.wait()
                wish = max(wish, int(answer))
                self._asking = None
            question = torch.tensor(wish)
            dist.all_reduce(question, dist.ReduceOp.MAX, self._group)
            wish = int(question)
        self._agreed = 0
        if wish >= LEAVE:
            raise Stopped(wish - LEAVE)

    def _wish(self, trainer: pl.Trainer) -> int:
        if stop_request.requested is not None:
            return LEAVE + stop_request.requested
        late = self.every_minutes is not None and time.monotonic() - self._since > 60 * self.every_minutes
        return SAVE if late and trainer.is_global_zero else 0

    def _gathered(self, module: pl.LightningModule) -> list[list[dict[str, Any]]]:
        own = [
            {"updates": metric._update_count, "state": {name: getattr(metric, name).cpu() for name in metric._defaults}}
            for metric in _metrics(module)
        ]
        if self._group is None:
            return [own]
        everyone: list[Any] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(everyone, own, self._group)
        return everyone


def _metrics(module: pl.LightningModule) -> list[Metric]:
    return [each for each in module.modules() if isinstance(each, Metric)]


def _no_number(which: str, trainer: pl.Trainer) -> str:
    return (
        f"the {which} loss became NaN or infinite in epoch {trainer.current_epoch + 1}; a smaller optimizer.lr, "
        "trainer.gradient_clip_val=1 or trainer.precision=32-true may help"
    )


def _watch(children: list[subprocess.Popen[bytes]]) -> None:
    """End this process where one that it has started has died and it does not notice by itself."""
    while any(child.poll() is None for child in children) and not any(child.returncode for child in children):
        time.sleep(0.5)
    ended = [child.returncode for child in children if child.returncode]
    if not ended:
        return
    time.sleep(10)  # mostly the next thing the ranks do together fails here too, and is told
    how = f"signal {signal.Signals(-ended[0]).name}" if ended[0] < 0 else f"exit code {ended[0]}"
    os.write(2, f"another process of this run has ended ({how}); the last checkpoint is intact\n".encode())
    for child in children:
        child.kill()
    os._exit(1)
