"""Describe faults of the machine in one line: memory, disk, other processes; imports nothing heavy."""

import errno
import re

from filterscope.errors import UserError

_PEER = re.compile(
    r"closed by peer|Connection reset|Broken pipe|connectFullMesh|NCCL|heartbeat|Timed out waiting", re.I
)
_GPU_MEMORY = re.compile(r"CUDA out of memory|CUDA error: out of memory|MPS backend out of memory|HIP out of memory")
_MEMORY = re.compile(r"DefaultCPUAllocator|can't allocate memory|Cannot allocate memory|unable to mmap")
_DISK = re.compile(r"PytorchStreamWriter|inline_container|write failed|No space left")

ADVICE = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "the quota is used up: make room",
    errno.EFBIG: "files may not become that large here",
    errno.EROFS: "choose a place that can be written",
    errno.EACCES: "choose a place that you may read and write, for outputs with hydra.run.dir=…",
    errno.EPERM: "choose a place that you may read and write, for outputs with hydra.run.dir=…",
    errno.EMFILE: "too many open files: a smaller data.num_workers, or a higher ulimit -n",
}


def describe_error(error: BaseException) -> str | None:
    """Return one line on what went wrong and what to do, or None if the error is a bug of filterscope."""
    if isinstance(error, UserError):
        return str(error)
    system = _system_error(error)
    if system is not None:
        return _describe_os_error(system)
    text = str(error)
    if type(error).__name__ == "OutOfMemoryError" or _GPU_MEMORY.search(text):
        return f"the GPU is out of memory ({_sentence(text)}); a smaller data.batch_size or data.image_size needs less"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _MEMORY.search(text)):
        said = f" ({_sentence(text)})" if text else ""
        return f"the machine is out of memory{said}; a smaller data.batch_size or data.num_workers needs less"
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


def _describe_os_error(error: OSError) -> str:
    parts = [str(part) for part in (error.filename, error.strerror or error) if part]
    advice = ADVICE.get(error.errno or 0)
    return ": ".join(parts) + (f"; {advice}" if advice else "")


def _sentence(text: str) -> str:
    line = next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")
    return line.partition(". ")[0].rstrip(".")[:300]
