"""Stop a process by signals: the first one requests a stop at the next safe point, the second one exits at once."""

import os
import signal
import threading
import time
from types import FrameType

from filterscope.runtime.terminal import print_safely

SIGNALS = (
    signal.SIGINT,
    signal.SIGTERM,
    *((signal.SIGHUP,) if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else ()),
    *((signal.SIGUSR1,) if "SLURM_JOB_ID" in os.environ else ()),
)
"""Ctrl-C, termination, a closed terminal (unless `nohup` ignores it), and Slurm's early signal (`--signal=USR1`)."""

_ONE_PRESS = 0.5  # seconds within which one Ctrl-C can arrive through two processes


class Stopped(BaseException):
    """A signal stopped the process; a `BaseException`, so that no `except Exception` catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_code(self) -> int:
        """The exit code that shells expect after a signal."""
        return 128 + self.number


class StopRequest:
    """The request to stop this process.

    While `deferred` is true, the first signal only sets `requested`, which the training loop checks at safe points;
    otherwise it raises `Stopped` at the line that is running.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self.deferred = False
        self._when = 0.0
        self._process = 0

    def install(self) -> None:
        """Install the handlers for this process, but not for those it forks, if this is the main thread."""
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._take)

    def check(self) -> None:
        """Raise `Stopped` if a stop was requested."""
        if self.requested is not None:
            raise Stopped(self.requested)

    def _take(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a loader process, which its parent ends
        if self.requested is not None:
            if time.monotonic() - self._when < _ONE_PRESS:
                return
            os._exit(128 + number)
        self.requested, self._when = number, time.monotonic()
        if not self.deferred:
            raise Stopped(number)
        name = signal.Signals(number).name
        print_safely(f"\n{name}: saving, then exiting; the same signal again exits at once\n")


stop_request = StopRequest()
"""The stop request of this process."""
