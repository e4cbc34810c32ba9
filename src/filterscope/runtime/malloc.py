"""Memory that is freed stays with the process: large tensors come and go with every step."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of malloc.h
_LARGEST = 2**31 - 1
_DEFAULTS = {_TRIM_THRESHOLD: 128 * 1024, _MMAP_MAX: 65536}


def keep_freed_memory(hold: bool = True) -> bool:
    """Let glibc keep freed memory for the next allocation, or with False give it back as usual; say whether it does.

    As usual every tensor of more than 32 MB is mapped anew, and each of its pages costs a fault when it is first
    written. Where the C library is another one nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return False
    wanted = {_TRIM_THRESHOLD: _LARGEST, _MMAP_MAX: 0} if hold else _DEFAULTS
    done = [bool(library.mallopt(parameter, value)) for parameter, value in wanted.items()]
    if not hold and hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
    return all(done) and hold
