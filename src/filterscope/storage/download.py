"""Download files over https with a checked hash, and unpack archives, each completely or not at all.

The downloaders of torch and torchvision follow redirects to http, and torchvision's write a file under its final name
before its hash is checked; hence this one.
"""

import gzip
import hashlib
import shutil
import sys
import tarfile
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from filelock import FileLock
from rich.console import Console
from rich.progress import wrap_file

from filterscope.errors import UserError, first_line
from filterscope.storage.atomic import atomic_folder, atomic_write, remove_partial_files, write_file

_TIMEOUT = 30  # seconds; behind a firewall that drops packets a connection would hang for minutes
_MAX_FILES = 2_000_000
_LOCAL_HOSTS = ("127.0.0.1", "::1", "localhost")
_UNPACK_ERRORS = (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError)  # of damaged archives


class WrongHashError(RuntimeError):
    """A downloaded file is not the published one; it has been deleted."""


def fetch(url: str, file: Path, *, digest: str) -> None:
    """Download a file, unless it is there already with the right hash.

    Args:
        url: an https address, or an http address of this machine.
        file: the path of the file, which appears when the download is complete and its hash is right.
        digest: the published hash, `md5:…` or `sha256:…`; its first digits are enough.

    Raises:
        OSError: the host cannot be reached, the connection broke, or the address or a redirect is not https.
        WrongHashError: the downloaded file has another hash.
    """
    if file.is_file() and has_digest(file, digest):
        return
    with _open(url) as answer:
        size = int(answer.headers.get("Content-Length") or 0)
        progress = wrap_file(
            answer, size, description=file.name, console=Console(stderr=True), disable=not sys.stderr.isatty()
        )
        with progress as stream, atomic_write(file, sync=True) as out:
            shutil.copyfileobj(stream, out)
            out.flush()
            if size and out.tell() < size:
                raise OSError(f"the connection broke after {out.tell():,} of {size:,} bytes; try again")
            if not has_digest(Path(out.name), digest):
                raise WrongHashError(f"its hash is not the published one, {digest}")


def read_url(url: str, *, max_bytes: int) -> bytes:
    """Return what lies at an https address, or at an http address of this machine.

    Raises:
        OSError: the host cannot be reached, the address or a redirect is not https, or there are more bytes.
    """
    with _open(url) as answer:
        content: bytes = answer.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise OSError(f"{url} has more than {max_bytes:,} bytes")
    return content


def has_digest(file: Path, digest: str) -> bool:
    """Return whether a file's hash begins with `digest`, given as `md5:…` or `sha256:…`."""
    kind, _, expected = digest.partition(":")
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()
    return bool(expected) and found.startswith(expected)


def is_safe(url: str) -> bool:
    """Return whether an address is https, or http on this machine."""
    address = urlparse(url)
    return address.scheme == "https" or (address.scheme == "http" and address.hostname in _LOCAL_HOSTS)


@contextmanager
def download_lock(name: str, *, url: str, folder: Path, files: str | None = None) -> Iterator[None]:
    """Let one process at a time download data into a folder, and turn every failure into one clear message.

    A process that waited for the lock finds the files of the other one.

    Args:
        name: of the data, for the message.
        url: where the data is published, for the message.
        folder: where the data is stored; it is created.
        files: the files that can be fetched from there by hand, for the message; None: none.

    Raises:
        UserError: the host cannot be reached, a file is damaged, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            remove_partial_files(folder)  # of a download that was killed
            yield
    except (OSError, RuntimeError, HTTPException, EOFError) as error:
        reason = getattr(error, "reason", None) or first_line(error)
        by_hand = f"put {files} from {url} into {folder} by hand, or " if files else ""
        raise UserError(
            f"could not download {name} from {urlparse(url).netloc or url} ({reason}); "
            f"{by_hand}give data.root=<the folder that has it>"
        ) from error


def missing_data_error(name: str, *, root: str, files: str) -> UserError:
    """Return the error for a data set that is not below `root` and must not be downloaded."""
    state = "holds no" if Path(root).expanduser().is_dir() else "does not exist; it should hold"
    return UserError(
        f"data.root={root} {state} {name} ({files}); give another data.root, or data.download=true to fetch it"
    )


def unpack_tar(archive: Path, folder: Path, *, max_bytes: int) -> None:
    """Unpack a tar archive, compressed or not, as a new folder, completely or not at all.

    Raises:
        UserError: the archive is damaged, contains a link, a device or a path outside of the folder, or its content is
            larger than `max_bytes`.
        OSError: the folder exists already or cannot be written.
    """
    size = 0
    try:
        with tarfile.open(archive) as tar, atomic_folder(folder) as partial:
            for count, member in enumerate(tar):
                if not (member.isreg() or member.isdir()):
                    raise UserError(f"{archive} contains {member.name!r}, which is a link or a device")
                target = partial / member.name
                if member.name.startswith("/") or ".." in target.parts:
                    raise UserError(f"{archive} contains {member.name!r}, which lies outside of its folder")
                size += member.size
                if size > max_bytes or count >= _MAX_FILES:
                    raise _too_large(archive, max_bytes)
                content = tar.extractfile(member)
                if content is None:
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                # Not `tar.extract(…, filter="data")`: Python 3.11 has it from 3.11.4 on only.
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as file:
                    shutil.copyfileobj(content, file)
    except _UNPACK_ERRORS as error:
        raise UserError(f"{archive} is damaged: {first_line(error)}") from error


def unpack_gzip(archive: Path, file: Path, *, max_bytes: int) -> None:
    """Unpack a gzip file of at most `max_bytes`.

    Raises:
        UserError: it is damaged, or larger.
    """
    try:
        with gzip.open(archive) as stream:
            content = stream.read(max_bytes + 1)
    except _UNPACK_ERRORS as error:
        raise UserError(f"{archive} is damaged: {first_line(error)}") from error
    if len(content) > max_bytes:
        raise _too_large(archive, max_bytes)
    write_file(file, content)


def _too_large(archive: Path, max_bytes: int) -> UserError:
    return UserError(
        f"{archive} unpacks to more than the expected {max_bytes:,} bytes; it may be made to fill the disk"
    )


def _open(url: str) -> Any:
    _require_https(url)
    return urllib.request.build_opener(_HttpsRedirects).open(url, timeout=_TIMEOUT)


def _require_https(url: str) -> None:
    if not is_safe(url):
        address = urlparse(url)
        raise OSError(f"{address.scheme}://{address.netloc} is refused: only https is allowed")


class _HttpsRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https only."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        _require_https(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)
