"""Keep freed memory in the process; otherwise every large tensor of a step costs page faults again."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of malloc.h
_LARGEST = 2**31 - 1
_DEFAULTS = {_TRIM_THRESHOLD: 128 * 1024, _MMAP_MAX: 65536}


def keep_freed_memory(hold: bool = True) -> bool:
    """Make glibc keep freed memory for the next allocation, or return it as usual, and return whether it is kept.

    By default every tensor of more than 32 MB is mapped anew, and each of its pages causes a fault when it is first
    written. With another C library nothing is changed.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return False
    wanted = {_TRIM_THRESHOLD: _LARGEST, _MMAP_MAX: 0} if hold else _DEFAULTS
    done = [bool(library.mallopt(parameter, value)) for parameter, value in wanted.items()]
    if not hold:
        return_freed_memory()
    return all(done) and hold


def return_freed_memory() -> None:
    """Return all freed memory to the system: glibc keeps what lies between blocks that are still used."""
    library = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    if library is not None and hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
