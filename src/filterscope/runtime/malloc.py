"""Keep freed memory in the process; otherwise every large tensor of a step costs page faults again."""

import ctypes
import sys
from typing import Any

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of malloc.h
_LARGEST = 2**31 - 1
_library: Any = ctypes.CDLL(None) if sys.platform.startswith("linux") else None


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next allocation; with another C library nothing is changed.

    By default every tensor of more than 32 MB is mapped anew, and each of its pages causes a fault when it is first
    written.
    """
    if hasattr(_library, "mallopt"):
        _library.mallopt(_TRIM_THRESHOLD, _LARGEST)
        _library.mallopt(_MMAP_MAX, 0)


def return_freed_memory() -> None:
    """Return all freed memory to the system: glibc keeps what lies between blocks that are still used."""
    if hasattr(_library, "malloc_trim"):
        _library.malloc_trim(0)
