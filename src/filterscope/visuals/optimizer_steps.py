"""Draw what `training.step_sizes` measures: learning rates, gradient norms and update ratios over a training."""

from collections.abc import Mapping
from typing import Any

from matplotlib import colormaps

from filterscope.visuals.drawing.charts import dark_figure, rasterized, shade
from filterscope.visuals.drawing.grid import FAINT, Cell, grid
from filterscope.visuals.output.outputs import Picture

_LONGEST_LEGEND = 10
_ABOUT = (
    "Mean over measured steps of each epoch, a line per layer from the first (dark) to the last (bright). "
    "**Gradient norm**: of the loss with respect to the layer's parameters, before clipping. **Update ratio**: norm of "
    "the change of the parameters in one step ÷ norm of the parameters. A layer far below the others hardly learns. "
    "For training from random weights, about 0.001 is a rule of thumb (Stanford's course CS231n)."
)


def draw_optimizer_steps(
    epochs: Mapping[int, Mapping[str, float]], rates: Mapping[int, Mapping[str, float]]
) -> Picture:
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
