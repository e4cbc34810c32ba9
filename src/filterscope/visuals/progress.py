"""A progress bar for work that takes minutes outside training."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from filterscope.analysis.synthesis import Progress as Update
from filterscope.visuals.visual import VisualState


@contextmanager
def progress_bar(what: str, state: VisualState, console: Console | None = None) -> Iterator[Update | None]:
    """Show a progress bar with an estimate of the remaining time, and yield the function that updates it.

    It takes a layer's name and the finished share of the work. In training, whose own bar would be disturbed, and
    without a terminal nothing is shown and None is yielded.
    """
    console = console or Console(stderr=True)
    if state.epoch is not None or not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("remaining:"), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(what, total=1.0)

        def update(layer: str, done: float) -> None:
            bar.update(task, description=f"{what} {layer}", completed=done)

        yield update
