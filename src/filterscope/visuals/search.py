"""Draw the history of a search: the value of every trial, and the best so far."""

from collections.abc import Sequence

from matplotlib.ticker import MaxNLocator

from filterscope.visuals.drawing.charts import dark_figure, rasterized, shade
from filterscope.visuals.drawing.grid import BLUE, FAINT, VERMILION, Cell, grid
from filterscope.visuals.output.outputs import Picture


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
