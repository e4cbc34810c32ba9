"""The processes of one run: which one speaks for all, and that none outlives the one that began it."""

import os
import subprocess
import threading
import time

from filterscope.runtime.signals import stop_request


def is_first_process() -> bool:
    """Return whether this process speaks for the run: the only one, or the first of several."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def exit_with_parent() -> None:
    """End a process that another one of its run has started, when that one is no more."""
    if os.environ.get("LOCAL_RANK", "0") == "0" or "TORCHELASTIC_RUN_ID" in os.environ or "SLURM_PROCID" in os.environ:
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def wait_for_process(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process, handing on the wish to stop, and return its exit code."""
    stop_request.deferred, told = True, False
    try:
        while process.poll() is None:
            if stop_request.requested is not None and not told:
                told = True
                process.send_signal(stop_request.requested)
            time.sleep(0.1)
    finally:
        stop_request.deferred = False
    return process.returncode
