"""Measure how far optimizer steps move each layer, and draw it with the learning rates."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import pytorch_lightning as pl
import torch
from matplotlib import colormaps
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from filterscope.training.loggers import log_numbers, show_outputs, tensorboard_writer
from filterscope.training.metrics_log import MetricsLog
from filterscope.training.module import FinetuneModule
from filterscope.visuals.drawing.charts import dark_figure, rasterized, shade
from filterscope.visuals.drawing.grid import FAINT, Cell, grid
from filterscope.visuals.output.outputs import Picture
from filterscope.visuals.output.writer import write_outputs

TAG = "optimizer/steps"
_LONGEST_LEGEND = 10
_ABOUT = (
    "Mean over measured steps of each epoch, a line per layer from the first (dark) to the last (bright). "
    "**Gradient norm**: of the loss with respect to the layer's parameters, before clipping. **Update ratio**: norm of "
    "the change of the parameters in one step ÷ norm of the parameters; 0.001 is usual when training from random "
    "weights, a layer far below the others hardly learns, above 0.01 a step is coarse."
)


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

    def __init__(self, folder: Path, *, steps: Annotated[int, Field(ge=1)] = 10) -> None:
        super().__init__()
        self.folder = folder
        self.steps = steps
        self.sums: dict[str, Tensor] = {}  # steps, gradient norms and update ratios of this epoch, summed
        self.rates: dict[int, dict[str, float]] = {}  # by optimizer step, of each parameter group; biases have the same
        self.epochs: dict[int, dict[str, float]] = {}
        self._before: dict[str, tuple[list[Tensor], Tensor]] = {}
        self._layers: dict[str, list[nn.Parameter]] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the layers that have parameters of their own to train."""
        del trainer
        if isinstance(pl_module, FinetuneModule):
            for name, layer in pl_module.classifier.layers.items():
                own = pl_module.classifier.get_submodule(layer.path).parameters(recurse=False)
                self._layers[name] = [parameter for parameter in own if parameter.requires_grad]

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Keep the gradient norms and the weights of a step that is measured."""
        del pl_module
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
        del trainer, pl_module, outputs, batch, batch_idx
        for name, (before, gradient) in self._before.items():
            changes = [now.detach() - then for now, then in zip(self._layers[name], before, strict=True)]
            ratio = _norm(changes) / _norm(before).clamp_min(1e-12)
            values = torch.stack([torch.ones_like(gradient), gradient, ratio])
            self.sums[name] = self.sums[name].to(values) + values if name in self.sums else values
        self._before.clear()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the means of the epoch and draw all epochs."""
        del pl_module
        epoch, numbers = trainer.current_epoch + 1, dict[str, float]()
        for name, values in self.sums.items():
            count, gradient, ratio = values.tolist()
            numbers |= {f"optimizer/gradient_norm/{name}": gradient / count}
            numbers |= {f"optimizer/update_ratio/{name}": ratio / count}
        for name, rate in (self.rates[max(self.rates)] if self.rates else {}).items():
            numbers[f"optimizer/learning_rate/{name}"] = rate
        self.sums.clear()
        self.epochs[epoch] = numbers
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, MetricsLog):
                callback.add(trainer, numbers, epoch=epoch)
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        log_numbers(trainer, numbers, epoch=epoch)
        shown = {TAG: draw_steps(self.epochs, self.rates)}
        write_outputs(shown, folder=self.folder, writer=tensorboard_writer(trainer), epoch=epoch)
        show_outputs(trainer, shown, epoch=epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the sums of this epoch, and what was measured before."""
        return {"sums": self.sums, "rates": self.rates, "epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        self.sums, self.rates, self.epochs = (dict(state_dict[name]) for name in ("sums", "rates", "epochs"))

    def _is_due(self, trainer: pl.Trainer) -> bool:
        """Return whether the next optimizer step of this epoch is one of those that are measured."""
        accumulated = int(trainer.accumulate_grad_batches)
        batches = trainer.num_training_batches
        if batches == float("inf"):
            return trainer.global_step % 50 == 0
        total = -(-int(batches) // accumulated)
        index = trainer.fit_loop.epoch_loop.batch_idx // accumulated
        return (index + 1) * self.steps // total > index * self.steps // total


def draw_steps(epochs: Mapping[int, Mapping[str, float]], rates: Mapping[int, Mapping[str, float]]) -> Picture:
    """Draw the learning rates over the optimizer steps, and gradient norms and update ratios over the epochs.

    Args:
        epochs: the numbers that `StepSizes` logs, by epoch.
        rates: by optimizer step, of each parameter group.
    """
    figure, axes = dark_figure(3)
    figure.set_figheight(11)
    last = list(rates.values())[-1] if rates else {}
    lines = {group: ([*rates], [each.get(group, 0.0) for each in rates.values()]) for group in last}
    _draw_lines(axes[0], lines)
    axes[0].set(xlabel="optimizer step", ylabel="learning rate")
    for chart, kind in zip(axes[1:], ("gradient_norm", "update_ratio"), strict=True):
        named: dict[str, tuple[list[int], list[float]]] = {}
        for epoch, numbers in epochs.items():
            for tag, value in numbers.items():
                if tag.startswith(f"optimizer/{kind}/"):
                    points = named.setdefault(tag.split("/", 2)[2], ([], []))
                    points[0].append(epoch)
                    points[1].append(value)
        _draw_lines(chart, named)
        chart.set(xlabel="epoch", ylabel=kind.replace("_", " "), yscale="log")
        chart.tick_params(which="minor", colors=shade(FAINT), labelsize=12)
        chart.xaxis.get_major_locator().set_params(integer=True)
    axes[2].axhline(1e-3, color=shade(FAINT), linewidth=1, linestyle="--")
    note = "each layer's gradient norm, and how far one step moves it relative to its weights; dashed: 0.001"
    pixels = grid([Cell(pixels=rasterized(figure))], columns=1, title="optimizer steps", notes=[note])
    return Picture(pixels=pixels, description=_ABOUT)


def _draw_lines(axes: Any, lines: Mapping[str, tuple[list[int], list[float]]]) -> None:
    """Draw lines in colours from dark to bright, with a legend of all, or of the first and the last of many."""
    for i, (name, (places, values)) in enumerate(lines.items()):
        colour = colormaps["plasma"](0.25 + 0.7 * i / max(1, len(lines) - 1))
        in_legend = len(lines) <= _LONGEST_LEGEND or i in (0, len(lines) - 1)
        label = name if in_legend else f"_{name}"  # matplotlib leaves out labels that begin with an underscore
        axes.plot(places, values, color=colour, linewidth=2, marker="o", markersize=4, label=label)
    if lines:
        legend = axes.legend(fontsize=13, loc="center left", bbox_to_anchor=(1.0, 0.5))
        legend.get_frame().set_alpha(0)
        for text in legend.get_texts():
            text.set_color(shade(FAINT))


def _norm(tensors: list[Tensor]) -> Tensor:
    """Return the Euclidean norm of all elements of some tensors together, in float32."""
    norm: Tensor = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(each.float()) for each in tensors]))
    return norm
