"""Archives are unpacked into one folder, whole or not at all: nothing beside it, no links, no more than expected."""

import gzip
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Generator
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import IO

from filterscope.errors import UserError
from filterscope.storage.atomic import PARTIAL, atomic_write

_CHUNK = 1 << 20
_MOST_FILES = 2_000_000

DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, gzip.BadGzipFile)
"""What is raised for an archive that is not whole."""

Entry = tuple[str, IO[bytes]]


def unpack(archive: Path, folder: Path, *, at_most: int) -> None:
    """Unpack a zip or tar archive as a new folder with at most so many bytes in it.

    Raises:
        UserError: it is damaged, has a link or a device in it, would write outside the folder, or holds more.
        OSError: the folder is there already or cannot be written.
    """
    beside = folder.with_name(f".{folder.name}{PARTIAL}")
    shutil.rmtree(beside, ignore_errors=True)
    room = at_most
    try:
        with closing(_entries(archive)) as entries:
            for count, (name, content) in enumerate(entries):
                with content:
                    place = beside / _inside(name, archive)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    with place.open("xb") as out:
                        room -= _copy(content, out, at_most=room, archive=archive)
                if count >= _MOST_FILES:
                    raise UserError(f"{archive} holds more than {_MOST_FILES:,} files")
        beside.mkdir(parents=True, exist_ok=True)
        beside.rename(folder)
    except (*DAMAGED, FileExistsError, NotADirectoryError, RuntimeError, NotImplementedError) as error:
        raise UserError(f"{archive} is damaged: {(str(error).splitlines() or [type(error).__name__])[0]}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def unpack_file(packed: Path, file: Path, *, at_most: int) -> None:
    """Unpack a gzip file of at most so many bytes.

    Raises:
        UserError: it is damaged, or holds more.
    """
    try:
        with gzip.open(packed) as content, atomic_write(file) as out:
            _copy(content, out, at_most=at_most, archive=packed)
    except DAMAGED as error:
        raise UserError(f"{packed} is damaged: {error}") from error


def _entries(archive: Path) -> Generator[Entry, None, None]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            for entry in opened.infolist():
                kind = entry.external_attr >> 28  # the upper bits of a Unix mode; 0 where nobody said
                if kind not in (0, 4, 8):
                    raise UserError(f"{archive} holds {entry.filename!r}, which is a link or a device")
                if not entry.is_dir():
                    yield entry.filename, opened.open(entry)
        return
    with tarfile.open(archive) as opened_tar:
        for member in opened_tar:
            if not member.isreg() and not member.isdir():
                raise UserError(f"{archive} holds {member.name!r}, which is a link or a device")
            content = opened_tar.extractfile(member)
            if content is not None:
                yield member.name, content


def _inside(name: str, archive: Path) -> PurePosixPath:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[:1] or not path.parts or "\0" in name:
        raise UserError(f"{archive} holds {name!r}, which would lie outside its folder")
    return path


def _copy(content: IO[bytes] | gzip.GzipFile, out: IO[bytes], *, at_most: int, archive: Path) -> int:
    size = 0
    while chunk := content.read(_CHUNK):
        size += len(chunk)
        if size > at_most:
            raise UserError(f"{archive} holds more than was expected; it may be made to fill the disk")
        out.write(chunk)
    return size
