"""Measure how far optimizer steps move each layer, and draw it with the learning rates."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.optim import Optimizer

from filterscope.training.loggers import log_numbers, show_outputs, tensorboard_writer
from filterscope.training.metrics_log import MetricsLog, find_callback
from filterscope.training.module import FinetuneModule
from filterscope.visuals.charts import draw_optimizer_steps
from filterscope.visuals.output.writer import write_outputs

TAG = "optimizer/steps"


class StepSizes(pl.Callback):
    """Logs the gradient norm and the update-to-weight ratio of each layer, and the learning rates, in each epoch.

    Some optimizer steps of an epoch are measured, evenly spread, and their mean is logged as
    `optimizer/gradient_norm/<layer>` and `optimizer/update_ratio/<layer>`; the learning rate of a parameter group at
    the end of the epoch as `optimizer/learning_rate/<group>`. The picture `optimizer/steps` shows all epochs.
    Training stays bit-identical.

    Args:
        folder: the run folder.
        steps: how many optimizer steps of an epoch are measured, each with a copy of the trained weights.
    """

    def __init__(self, folder: Path, *, steps: PositiveInt = 10) -> None:
        super().__init__()
        self.folder = folder
        self.steps = steps
        self.sums: dict[str, Tensor] = {}  # of this epoch: number of steps, summed gradient norms and update ratios
        self.rates: dict[int, dict[str, float]] = {}  # by optimizer step, of each parameter group; biases have the same
        self.epochs: dict[int, dict[str, float]] = {}
        self._before: dict[str, tuple[list[Tensor], Tensor]] = {}
        self._layers: dict[str, list[nn.Parameter]] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the layers that have parameters of their own to train."""
        if isinstance(pl_module, FinetuneModule):
            for name, layer in pl_module.classifier.layers.items():
                own = pl_module.classifier.get_submodule(layer.path).parameters(recurse=False)
                self._layers[name] = [parameter for parameter in own if parameter.requires_grad]

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Keep the gradient norms and the weights of a step that is measured."""
        if not self._is_due(trainer):
            return
        rates = {group["name"]: float(group["lr"]) for group in optimizer.param_groups}
        self.rates[trainer.global_step] = {name: rate for name, rate in rates.items() if "_bias" not in name}
        for name, parameters in self._layers.items():
            gradients = [each.grad for each in parameters if each.grad is not None]
            if gradients:
                self._before[name] = ([each.detach().clone() for each in parameters], _norm(gradients))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the step that was measured, if there was one."""
        for name, (before, gradient) in self._before.items():
            changes = [now.detach() - then for now, then in zip(self._layers[name], before, strict=True)]
            ratio = _norm(changes) / _norm(before).clamp_min(1e-12)
            values = torch.stack([torch.ones_like(gradient), gradient, ratio])
            self.sums[name] = self.sums[name].to(values) + values if name in self.sums else values
        self._before.clear()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the means of the epoch and draw all epochs."""
        epoch, numbers = trainer.current_epoch + 1, dict[str, float]()
        for name, values in self.sums.items():
            count, gradient, ratio = values.tolist()
            numbers |= {f"optimizer/gradient_norm/{name}": gradient / count}
            numbers |= {f"optimizer/update_ratio/{name}": ratio / count}
        for name, rate in (self.rates[max(self.rates)] if self.rates else {}).items():
            numbers[f"optimizer/learning_rate/{name}"] = rate
        self.sums.clear()
        self.epochs[epoch] = numbers
        if metrics_log := find_callback(trainer, MetricsLog):
            metrics_log.add(trainer, numbers, epoch=epoch)
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        log_numbers(trainer, numbers, epoch=epoch)
        shown = {TAG: draw_optimizer_steps(self.epochs, self.rates)}
        write_outputs(shown, folder=self.folder, writer=tensorboard_writer(trainer), epoch=epoch)
        show_outputs(trainer, shown, epoch=epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the sums of this epoch, and the results of earlier ones."""
        return {"sums": self.sums, "rates": self.rates, "epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the sums and results."""
        self.sums, self.rates, self.epochs = (dict(state_dict[name]) for name in ("sums", "rates", "epochs"))

    def _is_due(self, trainer: pl.Trainer) -> bool:
        """Return whether the next optimizer step of this epoch is one of those that are measured."""
        accumulated = int(trainer.accumulate_grad_batches)
        total = -(-int(trainer.num_training_batches) // accumulated)
        index = trainer.fit_loop.epoch_loop.batch_idx // accumulated
        return (index + 1) * self.steps // total > index * self.steps // total


def _norm(tensors: list[Tensor]) -> Tensor:
    """Return the Euclidean norm of all elements of some tensors together, in float32."""
    norm: Tensor = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(each.float()) for each in tensors]))
    return norm
