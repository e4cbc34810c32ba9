"""Writing a file whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

PARTIAL = ".partial"


@contextmanager
def atomic_write(path: Path, *, sync: bool = False) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path` for writing and rename it to `path` when the block ends well.

    The old file stays until the new one is complete; after an exception the temporary one is gone. Two processes that
    write the same file do not meet. With `sync` file and folder are on the disk when the block has ended.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with _opened(temporary) as file:
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


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("wb")
    except FileNotFoundError:  # nearly always the folder is there, and asking for it takes as long as opening the file
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("wb")


def write_file(path: Path, content: bytes) -> None:
    """Write the content under the name, complete or not at all."""
    with atomic_write(path) as file:
        file.write(content)


def synced_size(path: Path) -> int:
    """Put what a file holds on the disk and return its size."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_partial_files(folder: Path) -> None:
    """Remove what interrupted writes left in a folder and below it."""
    for leftover in folder.rglob(f".*{PARTIAL}"):
        leftover.unlink(missing_ok=True)
