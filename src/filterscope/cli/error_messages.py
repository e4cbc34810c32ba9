"""Describe every error in one line, and write its traceback to the log; imports nothing heavy."""

import errno
import logging
import re
import sys
import traceback
from typing import NoReturn

from filterscope.errors import UserError, first_line, printable

FAULT = "a fault of filterscope or of this machine, not of your input"
"""Begins the line of an error that nobody foresaw."""

_LONGEST = 2000  # characters of an error line, which may quote a value of any length

_PEER = re.compile(
    r"closed by peer|Connection reset|Broken pipe|connectFullMesh|NCCL|heartbeat|Timed out waiting", re.I
)
_GPU_MEMORY = re.compile(r"CUDA out of memory|CUDA error: out of memory|MPS backend out of memory|HIP out of memory")
_MEMORY = re.compile(
    r"DefaultCPUAllocator|can't allocate memory|Cannot allocate memory|unable to mmap|failed to map|bad_alloc"
    r"|Storage size calculation overflowed|integer multiplication overflow"
)
_PROCESSES = re.compile(r"can't start new thread|Resource temporarily unavailable")
_DISK = re.compile(r"PytorchStreamWriter|inline_container|write failed|No space left")

ADVICE = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "the quota is used up: make room",
    errno.EFBIG: "files may not become that large here",
    errno.EROFS: "choose a place that can be written",
    errno.EACCES: "choose a place that you may read and write, for outputs with hydra.run.dir=…",
    errno.EPERM: "choose a place that you may read and write, for outputs with hydra.run.dir=…",
    errno.ENOMEM: "the machine is out of memory: a smaller data.batch_size or data.num_workers, or a higher ulimit -v",
    errno.EAGAIN: "no more processes are allowed: a smaller data.num_workers, or a higher ulimit -u",
    errno.EMFILE: "too many open files: a smaller data.num_workers, or a higher ulimit -n",
}


def one_line(message: str) -> str:
    """Return a message as one printable line of bounded length."""
    return printable(" ".join(message.split()), longest=_LONGEST)


def exit_with_message(message: str, code: int) -> NoReturn:
    """Print one line to the standard error and exit."""
    print(one_line(message), file=sys.stderr)
    sys.exit(code)


def describe_fault(error: BaseException) -> str:
    """Return the line of an error that nobody foresaw, and write its traceback to the log files that are open."""
    files = [each for each in logging.getLogger().handlers if isinstance(each, logging.FileHandler)]
    log_traceback(error)
    place = f"the traceback is in {files[0].baseFilename}" if files else "HYDRA_FULL_ERROR=1 shows the traceback"
    return f"{FAULT}: {type(error).__name__}: {first_line(error)}; {place}"


def log_traceback(error: BaseException, message: str = "unexpected error") -> None:
    """Write an error's traceback to the log files, but not to the screen."""
    details = (type(error), error, error.__traceback__)
    record = logging.LogRecord("filterscope", logging.ERROR, __file__, 0, message, None, details)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


def describe_error(error: BaseException) -> str | None:
    """Return one line on what went wrong and what to do, or None if the error is a bug of filterscope."""
    if isinstance(error, UserError):
        return str(error)
    system = _system_error(error)
    if system is not None:
        return _describe_os_error(system)
    text = str(error)
    if type(error).__name__ == "MisconfigurationException":  # Lightning's, such as for limit_val_batches=0.001
        return f"trainer: {text}"
    if type(error).__name__ == "OutOfMemoryError" or _GPU_MEMORY.search(text):
        return f"the GPU is out of memory ({_sentence(text)}); a smaller data.batch_size or data.image_size needs less"
    if isinstance(error, RuntimeError) and _PROCESSES.search(text):
        return f"no more processes or threads are allowed ({_sentence(text)}); a higher ulimit -u allows more"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError | ImportError) and _MEMORY.search(text)):
        said = f" ({_sentence(text)})" if text else ""
        return f"the machine is out of memory{said}; a smaller data.batch_size or data.num_workers needs less"
    if isinstance(error, RuntimeError) and _raised_in(error).startswith("pytorch_lightning.callbacks."):
        return f"callbacks: {text}"  # such as EarlyStopping for a metric that is not measured
    if type(error).__name__.startswith("Dist") or (isinstance(error, RuntimeError) and _PEER.search(text)):
        return f"another process of this run has ended or cannot be reached ({_sentence(text)})"
    if isinstance(error, RuntimeError) and "DataLoader worker" in text:
        # torch raises it from a signal handler, at any line, not only where the next batch is requested.
        return f"a loader process died ({_sentence(text)}); a smaller data.num_workers or data.batch_size needs less"
    if isinstance(error, RuntimeError) and _DISK.search(text):
        return f"a file could not be written completely ({_sentence(text)}); is the disk full?"
    return None


def _system_error(error: BaseException | None) -> OSError | None:
    """Return the operating system's error that caused an error: torch reports a full disk as an internal error."""
    seen = 0
    while error is not None and seen < 10:
        if isinstance(error, OSError):
            return error
        error, seen = error.__cause__ or error.__context__, seen + 1
    return None


def _raised_in(error: BaseException) -> str:
    """Return the module whose code raised an error."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return str(frames[-1][0].f_globals.get("__name__", "")) if frames else ""


def _describe_os_error(error: OSError) -> str:
    parts = [str(part) for part in (error.filename, error.strerror or error) if part]
    advice = ADVICE.get(error.errno or 0)
    return ": ".join(parts) + (f"; {advice}" if advice else "")


def _sentence(text: str) -> str:
    line = next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")
    return line.partition(". ")[0].rstrip(".")[:300]
