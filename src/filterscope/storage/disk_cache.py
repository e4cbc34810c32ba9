"""Folders on disk that are computed once and shared by processes and runs."""

import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torchvision
from filelock import FileLock
from torch import Tensor

from filterscope.errors import UserError
from filterscope.storage.atomic import atomic_folder

METADATA = "about.json"


def build_once(
    folder: Path, *, key: str, num_bytes: int, option: str, build: Callable[[Path], Mapping[str, Any]]
) -> Path:
    """Return the cache entry `folder/key`, building it if it is missing or incomplete.

    If several processes want the same entry, one builds it and the others wait.

    Args:
        folder: the folder of all entries.
        key: a name that changes with everything the content depends on; see `cache_key`.
        num_bytes: about how many bytes the entry takes.
        option: the option that names the folder, for error messages.
        build: writes files into an empty folder and returns metadata that JSON can hold.

    Raises:
        UserError: the folder cannot be written, or its disk has too little space.
    """
    entry = folder / key
    if is_complete(entry):
        return entry
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{key}.lock"):
            if is_complete(entry):
                return entry
            shutil.rmtree(entry, ignore_errors=True)
            free = shutil.disk_usage(folder).free
            if num_bytes > free:
                raise UserError(
                    f"{option}={folder}: {format_bytes(num_bytes)} are needed, {format_bytes(free)} are free"
                )
            with atomic_folder(entry) as partial:
                metadata = build(partial)
                sizes = {file.name: file.stat().st_size for file in partial.iterdir()}
                (partial / METADATA).write_text(json.dumps({**metadata, "sizes": sizes}), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{option}={folder} cannot be written: {error.strerror or error}") from error
    return entry


def is_complete(entry: Path) -> bool:
    """Return whether a cache entry exists and all its files have the sizes they were written with."""
    try:
        sizes = read_metadata(entry)["sizes"]
        return all((entry / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def read_metadata(entry: Path) -> dict[str, Any]:
    """Return the metadata that `build` returned for a cache entry."""
    content: dict[str, Any] = json.loads((entry / METADATA).read_text(encoding="utf-8"))
    return content


def cache_key(parts: Iterable[object], *, code: Iterable[ModuleType]) -> str:
    """Return a hash of parts (by their `repr`, or bytes as they are), torch's version, and the source of code.

    Args:
        parts: everything that the content depends on.
        code: modules, and packages with all modules that lie directly in them.
    """
    digest = hashlib.sha256()
    for part in itertools.chain(parts, (torch.__version__, torchvision.__version__)):
        digest.update(part if isinstance(part, bytes | memoryview) else repr(part).encode())
        digest.update(b"\0")
    for file in (Path(str(module.__file__)) for module in code):
        for source in sorted(file.parent.glob("*.py")) if file.name == "__init__.py" else [file]:
            digest.update(source.read_bytes())
    return digest.hexdigest()[:24]


def hash_tensor(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's type, shape and values."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor's values in their order."""
    values: memoryview = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return values


def format_bytes(count: int) -> str:
    """Return a number of bytes as text, such as `1.5 GB`."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
