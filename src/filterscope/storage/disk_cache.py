"""Folders that are built once: complete under their name or not there, whoever builds, whatever interrupts it."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torchvision
from filelock import FileLock

from filterscope.errors import UserError

ABOUT = "about.json"


def build_once(place: Path, *, key: str, needs: int, knob: str, build: Callable[[Path], Mapping[str, Any]]) -> Path:
    """Return the folder of that key below `place`; it is built where it is missing or not whole.

    Who comes second waits for who builds. The folder is written beside its place and renamed at the end; what an
    interrupted build left is swept up by the next.

    Args:
        place: where such folders lie.
        key: names everything that the content depends on.
        needs: about how many bytes it will take.
        knob: the place's name in the config, for messages.
        build: fills an empty folder and returns plain data about its content.

    Raises:
        UserError: the place cannot be written, or has too little room.
    """
    final, partial = place / key, place / f".{key}.partial"
    if is_complete(final):
        return final
    try:
        place.mkdir(parents=True, exist_ok=True)
        with FileLock(place / f".{key}.lock"):
            if is_complete(final):
                return final
            for leftover in (partial, final):
                shutil.rmtree(leftover, ignore_errors=True)
            free = shutil.disk_usage(place).free
            if needs > free:
                raise UserError(
                    f"{knob}={place}: {format_bytes(needs)} are needed there, {format_bytes(free)} are free"
                )
            partial.mkdir()
            try:
                about = build(partial)
                sizes = {file.name: file.stat().st_size for file in partial.iterdir()}
                (partial / ABOUT).write_text(json.dumps({**about, "sizes": sizes}), encoding="utf-8")
                partial.rename(final)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{knob}={place} cannot be written: {error.strerror or error}") from error
    return final


def is_complete(folder: Path) -> bool:
    """Return whether a folder is there and holds all that was written into it."""
    try:
        sizes = read_metadata(folder)["sizes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def read_metadata(folder: Path) -> dict[str, Any]:
    """Return what `build` said of the content of a folder."""
    content: dict[str, Any] = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    return content


def cache_key(parts: Iterable[object], *, code: Iterable[ModuleType]) -> str:
    """Return a short name that changes with any of the parts, the source of these modules, or torch's version."""
    digest = hashlib.sha256()
    for part in (*parts, torch.__version__, torchvision.__version__):
        digest.update(part if isinstance(part, bytes) else repr(part).encode())
        digest.update(b"\0")
    for module in code:
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()[:24]


def format_bytes(count: int) -> str:
    """Return a number of bytes as people say it."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
