"""Write files and folders atomically: complete under their final name, or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from filterscope.errors import UserError

PARTIAL = ".partial"
"""The suffix of temporary names."""

_SIGNS_OF_RUN = (".hydra", ".lock", "checkpoints", "metrics.csv")

_bounds: list[tuple[Path, Path]] = []  # each folder as it was given, and its path without links


def keep_below(folder: Path) -> None:
    """Refuse from now on to write files of this folder through links that lead out of it."""
    _bounds.append((folder, folder.resolve()))


@contextmanager
def atomic_write(path: Path, *, sync: bool = False) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path` for writing and rename it to `path` when the block ends without an error.

    Until then a previous file stays as it was; after an error the temporary file is removed. Several processes may
    write the same file.

    Args:
        path: the final name; missing folders are created.
        sync: flush the file and its folder to the disk before the block ends, so that a power cut loses nothing.
    """
    _check_bounds(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with _open_for_writing(temporary) as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if sync:
        sync_folder(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path` and rename it to `path` when the block ends without an error.

    The temporary folder of a process that was killed is removed by the next one. Only one process at a time may
    write the same folder.

    Raises:
        OSError: `path` exists already and is not empty, or cannot be written.
    """
    temporary = path.with_name(f".{path.name}{PARTIAL}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_file(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with atomic_write(path) as file:
        file.write(content)


def synced_size(path: Path) -> int:
    """Flush a file to the disk and return its size in bytes."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size


def sync_folder(folder: Path) -> None:
    """Flush the names of a folder's files to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def paths_of_run(folder: Path) -> Iterator[Path]:
    """Yield all files and folders inside a run folder, except those of other runs inside it."""
    for root, folders, files in os.walk(folder):
        place = Path(root)
        folders[:] = [each for each in folders if not any((place / each / sign).exists() for sign in _SIGNS_OF_RUN)]
        yield from (place / name for name in (*folders, *files))


def remove_partial_files(folder: Path) -> None:
    """Remove the temporary files and folders that interrupted writes left in a folder, but not in runs inside it."""
    for leftover in [path for path in paths_of_run(folder) if path.match(f".*{PARTIAL}")]:
        shutil.rmtree(leftover, ignore_errors=True) if leftover.is_dir() else leftover.unlink(missing_ok=True)


def _check_bounds(path: Path) -> None:
    for folder, place in _bounds:
        if path.is_relative_to(folder) and not path.parent.resolve().is_relative_to(place):
            raise UserError(f"{path.parent} is a link that leads out of {folder}; only files below it are written")


def _open_for_writing(path: Path) -> IO[bytes]:
    try:
        return path.open("wb")
    except FileNotFoundError:  # checking for the folder first would take as long as opening the file
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("wb")
