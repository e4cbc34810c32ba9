"""Screen output that never ends a run: nobody may read it, and its encoding may lack characters."""

import io
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def protect_output() -> None:
    """Make printing never fail: not with a closed pipe, a full device, a closed terminal or an ASCII locale."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # closed by the shell: the next file to be opened would take its place and all that is printed
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, io.TextIOWrapper):
            continue  # replaced by a notebook or a test
        with suppress(OSError, ValueError):
            stream.flush() if stream else None
        raw = _Unfailing(descriptor, "wb", closefd=False)
        encoding = getattr(stream, "encoding", "utf-8")
        setattr(
            sys,
            name,
            io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors="backslashreplace", line_buffering=True),
        )


def short_path(path: Path) -> Path:
    """Return a path as it is shown: relative to the working directory if it lies below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def tracked(items: Iterable[T], what: str, *, total: int | None = None) -> Iterable[T]:
    """Return items that show a progress bar in a terminal while a loop takes them; `total`: how many, if unknown."""
    from rich.progress import track  # not at the top: the scripts read this module before anything heavy

    return track(items, what, total, transient=True, disable=not sys.stdout.isatty())


def print_safely(text: str) -> None:
    """Print to the standard error from a signal handler, which may have interrupted another print."""
    with suppress(OSError):
        os.write(2, text.encode("ascii", "backslashreplace"))


class _Unfailing(io.FileIO):
    """A file whose content is lost if it cannot be written."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data) or len(data)
        except OSError:
            return len(data)
