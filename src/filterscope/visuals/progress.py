"""A bar for work that takes minutes, where nothing else shows one."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from filterscope.analysis.synthesis import Progress as Told
from filterscope.visuals.visual import VisualState


@contextmanager
def progress_bar(what: str, state: VisualState, console: Console | None = None) -> Iterator[Told | None]:
    """Show how far the work inside is, with an estimate of what is left, and yield the function to be told.

    In training, whose own bar it would disturb, and where nobody watches a terminal, nothing is shown.
    """
    console = console or Console(stderr=True)
    if state.epoch is not None or not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("left:"), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(what, total=1.0)

        def told(layer: str, done: float) -> None:
            bar.update(task, description=f"{what} {layer}", completed=done)

        yield told
