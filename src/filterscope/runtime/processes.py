"""The processes of one run: rank zero, waiting, process groups, and exiting together."""

import os
import signal
import socket
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from filterscope.errors import UserError
from filterscope.runtime.signals import stop_request
from filterscope.runtime.terminal import print_safely

T = TypeVar("T")
PARENT = "FILTERSCOPE_PARENT"
"""The environment variable that names the process that starts another one for the same run."""


def is_first_process() -> bool:
    """Return whether this process is the only one of its run or has rank 0, judged by the launcher's variables."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def world_size() -> int:
    """Return the number of processes that compute together; 1 if this is no distributed run."""
    import torch.distributed as dist  # not at the top: the scripts read this module before they import torch

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather(value: T, group: Any = None) -> list[T]:
    """Return the values of all processes of a distributed run, in the order of their ranks; each must call this."""
    import torch.distributed as dist  # as above

    values = [value] * world_size()
    if len(values) > 1:
        dist.all_gather_object(values, value, group)
    return values


def exit_with_parent() -> None:
    """Exit this process when the one that started it for the same run has died, also if it has died already."""
    named = os.environ.pop(PARENT, None)
    if named is None and "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    parent = os.getppid()
    if named is not None and int(named) != parent and _has_ended(int(named)):
        parent = int(named)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        print_safely("the process that started this one has ended, so this one ends too\n")
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _has_ended(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    with suppress(OSError):  # where there is no /proc
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return False


def separate_forked_processes() -> None:
    """Give processes that this one forks a group of their own.

    A signal to a whole group (Ctrl-C in a terminal, `kill -- -<group>`) then reaches no loader process, without which
    the epoch could not be saved. Loader processes end by themselves when their parent has ended.
    """
    os.register_at_fork(after_in_child=lambda: os.setpgid(0, 0))


class Ranks:
    """The processes that Lightning has started for the other ranks, watched in place of Lightning.

    Its own watch kills this process without a message. It watches the launcher's list, which is emptied here.
    """

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[bytes]] = []

    def watch(self, launcher: Any) -> None:
        """Watch the processes that a launcher of Lightning is going to start, if it starts any.

        Raises:
            UserError: the port at which they are to meet is in use, so that they would wait for each other in vain.
        """
        count = getattr(launcher, "num_processes", 1) - 1
        if count > 0 and hasattr(launcher, "procs") and not launcher.cluster_environment.creates_processes_externally:
            port = os.environ.get("MASTER_PORT")
            if port is not None and os.environ.get("NODE_RANK", "0") == "0" and not _is_free(port):
                raise UserError(f"MASTER_PORT={port} is not a free port of this machine; choose another, or unset it")
            os.environ[PARENT] = str(os.getpid())
            threading.Thread(target=self._watch, args=(launcher, count), daemon=True).start()

    def kill(self) -> None:
        """End the processes."""
        for process in self._started:
            process.kill()

    def _watch(self, launcher: Any, count: int) -> None:
        while len(launcher.procs) < count:
            time.sleep(0.1)
        os.environ.pop(PARENT, None)
        self._started, launcher.procs[:] = list(launcher.procs), []
        while any(each.poll() is None for each in self._started) and not any(each.returncode for each in self._started):
            time.sleep(0.5)
        ended = [each.returncode for each in self._started if each.returncode]
        if not ended:
            return
        time.sleep(10)  # usually the next collective operation fails in this process too, with a message
        how = f"signal {signal.Signals(-ended[0]).name}" if ended[0] < 0 else f"exit code {ended[0]}"
        print_safely(f"another process of this run has ended ({how}); the last checkpoint is intact\n")
        self.kill()
        os._exit(1)


def _is_free(port: str) -> bool:
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ports of connections that have ended are free
        try:
            trial.bind(("", int(port)))
        except (OSError, ValueError, OverflowError):
            return False
    return True


ranks = Ranks()
"""The other ranks that this process has started."""


def wait_for_process(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process, pass a stop request on to it once, and return its exit code."""
    stop_request.deferred, sent = True, False
    try:
        while process.poll() is None:
            if stop_request.requested is not None and not sent:
                sent = True
                process.send_signal(stop_request.requested)
            time.sleep(0.1)
    finally:
        stop_request.deferred = False
    return process.returncode
