"""The processes of one run: rank zero, waiting, exiting together, and a run folder that only one process creates."""

import itertools
import os
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

from filterscope.runtime.signals import stop_request

_made: dict[str, str] = {}


def is_first_process() -> bool:
    """Return whether this process is the only one of its run or has rank 0, judged by the launcher's variables."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def exit_with_parent() -> None:
    """Exit this worker when the process that spawned it has died; only workers that Lightning spawned do so."""
    if os.environ.get("LOCAL_RANK", "0") == "0" or "TORCHELASTIC_RUN_ID" in os.environ or "SLURM_PROCID" in os.environ:
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


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


def unique_dir(path: str) -> str:
    """Create a folder that no other run has created and return its path: `path`, or `path_2`, `path_3` … if it exists.

    Calls with the same path return the same folder. Processes other than the first of a run take the path as it is.
    """
    if path not in _made:
        _made[path] = path if not is_first_process() else _make_unique(Path(path))
    return _made[path]


def _make_unique(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        made = path if number == 1 else path.with_name(f"{path.name}_{number}")
        with suppress(FileExistsError):
            made.mkdir()
            return str(made)
    raise AssertionError
