"""How a process is told to stop: the first signal asks for it, a second one ends it at once."""

import os
import signal
import sys
import threading
import time
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, *((signal.SIGUSR1,) if "SLURM_JOB_ID" in os.environ else ()))
"""Ctrl-C, an end that was asked for, and what Slurm sends before a time limit where `--signal=USR1@120` says so."""

_ONE_PRESS = 0.5  # seconds within which the same wish can arrive through two processes


class Stopped(BaseException):
    """The process was told to stop by a signal; no mistake, so no `except Exception` may swallow it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that a signal has ended."""
        return 128 + self.number


class StopRequest:
    """Remembers that the process was told to stop.

    While someone is `patient`, who looks at `wanted` where stopping does no harm, the first signal only sets it;
    otherwise it raises `Stopped` wherever the program is.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self.deferred = False
        self._when = 0.0

    def install(self) -> None:
        """Take the signals over; only a main thread can."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._take)

    def check(self) -> None:
        """Raise `Stopped` where the process was told to stop meanwhile."""
        if self.requested is not None:
            raise Stopped(self.requested)

    def _take(self, number: int, _frame: FrameType | None) -> None:
        if self.requested is not None:
            if time.monotonic() - self._when < _ONE_PRESS:
                return
            os._exit(128 + number)
        self.requested, self._when = number, time.monotonic()
        if not self.deferred:
            raise Stopped(number)
        name = signal.Signals(number).name
        # Not through logging or print: the signal may have come in the middle of either.
        os.write(
            sys.__stderr__.fileno() if sys.__stderr__ else 2,
            f"\n{name}: saving and leaving; once more leaves at once\n".encode(),
        )


stop_request = StopRequest()
"""The one of this process."""
