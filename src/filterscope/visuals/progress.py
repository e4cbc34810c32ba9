"""A progress bar for work that takes minutes outside training."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from filterscope.analysis.synthesis import Progress as Update
from filterscope.visuals.visual import VisualState

log = logging.getLogger(__name__)

_SHORT = 20.0  # seconds of work that need no lines in the log


@contextmanager
def progress_bar(what: str, state: VisualState, console: Console | None = None) -> Iterator[Update | None]:
    """Show a progress bar with an estimate of the remaining time, and yield the function that updates it.

    It takes a layer's name and the finished share of the work. Without a terminal every tenth is a line in the log. In
    training, whose own bar would be disturbed, nothing is shown and None is yielded.
    """
    console = console or Console(stderr=True)
    if state.epoch is not None:
        yield None
        return
    if not console.is_terminal:
        yield _log_tenths(what)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("remaining:"), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(what, total=1.0)

        def update(layer: str, done: float) -> None:
            bar.update(task, description=f"{what} {layer}", completed=done)

        yield update


def _log_tenths(what: str) -> Update:
    """Return a function that logs the remaining time whenever another tenth of the work is done."""
    begun, logged = time.monotonic(), 0

    def update(layer: str, done: float) -> None:
        nonlocal logged
        took = time.monotonic() - begun
        if int(10 * done) > logged and done < 1 and took / done > _SHORT:
            logged = int(10 * done)
            log.info("%s %s, %d %% done, about %.1f minutes left", what, layer, 100 * done, took * (1 / done - 1) / 60)

    return update
