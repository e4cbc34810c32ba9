"""Charts drawn by matplotlib in the colours of the pictures: of a search, and of the optimizer steps of a training."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from filterscope.visuals.drawing.grid import (
    BACKGROUND,
    BLUE,
    FAINT,
    MARGIN,
    VERMILION,
    WIDTH,
    Cell,
    Colour,
    Pixels,
    grid,
)
from filterscope.visuals.output.outputs import Picture

_LONGEST_LEGEND = 10
_STEPS_DESCRIPTION = (
    "Mean over measured steps of each epoch, a line per layer from the first (dark) to the last (bright). "
    "**Gradient norm**: of the loss with respect to the layer's parameters, before clipping. **Update ratio**: norm of "
    "the change of the parameters in one step ÷ norm of the parameters. A layer far below the others hardly learns. "
    "For training from random weights, about 0.001 is a rule of thumb (Stanford's course CS231n)."
)


def dark_figure(rows: int, **options: Any) -> tuple[Figure, list[Any]]:
    """Return a figure as wide as a picture, in its colours, and its axes, one below the other."""
    size = ((WIDTH - 2 * MARGIN) / 100, 5.6)
    figure = Figure(figsize=size, dpi=100, layout="constrained", facecolor=shade(BACKGROUND))
    every = list(figure.subplots(rows, 1, squeeze=False, **options)[:, 0])
    for axes in every:
        axes.set_facecolor(shade(BACKGROUND))
        axes.tick_params(colors=shade(FAINT), labelsize=15)
        axes.xaxis.label.set(color=shade(FAINT), size=16)
        axes.yaxis.label.set(color=shade(FAINT), size=16)
        axes.spines[:].set_color(shade(FAINT))
    return figure, every


def rasterized(figure: Figure) -> Pixels:
    """Return the pixels of a figure."""
    file = io.BytesIO()
    figure.savefig(file, format="png", facecolor=figure.get_facecolor())
    return np.asarray(Image.open(file).convert("RGB"))


def shade(colour: Colour) -> tuple[float, float, float]:
    """Return a colour as matplotlib takes it."""
    red, green, blue = (part / 255 for part in colour)
    return red, green, blue


def search_picture(trials: Sequence[tuple[int, str, float | None]], *, monitor: str, maximize: bool) -> Picture:
    """Draw trials as points and the best so far as a line.

    Args:
        trials: number, state (`complete`, `pruned`, `fail`) and value of each, that of its last epoch for a pruned one.
        monitor: the metric that was optimized.
        maximize: whether larger is better.
    """
    figure, (axes,) = dark_figure(1)
    best: list[tuple[int, float]] = []
    for number, state, value in trials:
        if state == "complete" and value is not None:
            before = best[-1][1] if best else value
            best.append((number, max(before, value) if maximize else min(before, value)))
    for state, colour, marker in (("complete", BLUE, "o"), ("pruned", VERMILION, "x")):
        shown = [(number, value) for number, each, value in trials if each == state and value is not None]
        if shown:
            axes.scatter(*zip(*shown, strict=True), color=shade(colour), marker=marker, s=60, label=state, zorder=3)
    if best:
        axes.step(*zip(*best, strict=True), where="post", color=shade(FAINT), label="best so far")
    axes.set(xlabel="trial", ylabel=monitor)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(labelcolor=shade(FAINT), facecolor=figure.get_facecolor(), fontsize=15)
    counts = {state: sum(each == state for _, each, _ in trials) for state in ("complete", "pruned", "fail")}
    note = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    return Picture(
        pixels=grid([Cell(pixels=rasterized(figure))], columns=1, title="search", notes=[note]), description=note
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
    return Picture(pixels=pixels, description=_STEPS_DESCRIPTION)


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
