"""Files of tensors are read as data: nothing in them is executed, and none is larger in memory than on the disk."""

import pickle
import struct
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# What `torch.load` was seen to raise on damaged files: the old format is read by an interpreter without checks.
LOAD_ERRORS = (
    pickle.PickleError,
    zipfile.BadZipFile,
    struct.error,
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    MemoryError,
)

_PLAIN = (str, int, float, complex, bytes, torch.dtype, torch.device)
_DEPTH = 100
_SHARED = 1 << 26  # bytes that expanded tensors, whose elements share their memory, may take when they are copied


def load_plain(path: Path, *, mmap: bool = False) -> Any:
    """Return what a file that `torch.save` wrote holds, if it is tensors, numbers, strings, lists and dicts.

    Raises:
        one of UNREADABLE: the file is damaged, holds anything else, or more than there are bytes in it.
    """
    if not path.is_file():  # a pipe or a device would be waited for
        raise FileNotFoundError(2, "no such file", str(path))
    if zipfile.is_zipfile(path):
        _refuse_packed(path)
    with warnings.catch_warnings(action="ignore"):
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    shared = 0
    for tensor in _tensors(content, _DEPTH, set()):
        if tensor.layout != torch.strided:
            raise ValueError("it holds a sparse tensor")
        size = tensor.numel() * tensor.itemsize
        shared += size if size > tensor.untyped_storage().nbytes() else 0
        if shared > _SHARED:
            raise ValueError(f"its tensor of shape {tuple(tensor.shape)} has fewer values in the file")
    return content


def load_error_reason(error: BaseException) -> str:
    """Say in a few words why a file could not be read."""
    if isinstance(error, pickle.PickleError):
        return "it is damaged or holds more than plain data"
    if isinstance(error, RecursionError):
        return "it is nested without end"
    return str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__


def _refuse_packed(path: Path) -> None:
    """Raise where an archive would grow when it is read: torch stores tensors as they are."""
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > path.stat().st_size:
        raise ValueError(f"it would grow to {unpacked:,} bytes")


def _tensors(content: Any, depth: int, seen: set[int]) -> Iterator[Tensor]:
    """Yield the tensors, each once; whatever is no plain data is refused."""
    if depth == 0:
        raise ValueError("it is nested without end")
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, dict | list | tuple | set):
        if id(content) in seen:  # a list of itself, twice, and so on would take for ever
            return
        seen.add(id(content))
        for key in content if isinstance(content, dict) else ():
            if not isinstance(key, str | int | float | tuple):
                raise ValueError(f"it has a {type(key).__name__} as a key")
        for value in content.values() if isinstance(content, dict) else content:
            yield from _tensors(value, depth - 1, seen)
    elif content is not None and not isinstance(content, _PLAIN):
        raise ValueError(f"it holds a {type(content).__name__}")
