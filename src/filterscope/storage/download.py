"""Downloads: over https, to a temporary name, gone on with where they broke off, and used only with the right hash."""

import hashlib
import http.client
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlparse

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from filterscope.storage.atomic import PARTIAL, sync_folder

_CHUNK = 1 << 20
_PATIENCE = 30  # seconds of silence from a host; a firewall that swallows packets would hold a start for minutes
_TRIES = 3
_HERE = ("127.0.0.1", "::1", "localhost")


class WrongHashError(RuntimeError):
    """What came is not what was published; it has been thrown away."""


def fetch(url: str, file: Path, *, digest: str) -> None:
    """Download a file whose hash begins with `digest`, given as `sha256:…` or `md5:…`.

    What an earlier attempt, of this process or another, has got already is not asked for again.

    Raises:
        OSError: the host is not reached, or what came stopped too early; the next call goes on from there.
        WrongHashError: the file has another hash.
    """
    _check_address(url)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}{PARTIAL}")
    for attempt in range(_TRIES):
        try:
            _go_on(url, part)
            break
        except (OSError, http.client.HTTPException) as error:
            broken = isinstance(error, _BrokenOffError | http.client.IncompleteRead | ConnectionResetError)
            if not broken or attempt == _TRIES - 1:
                if not part.stat().st_size:
                    part.unlink()
                raise
    if not has_digest(part, digest):
        part.unlink()
        raise WrongHashError(f"its hash is not the published one, {digest}")
    part.replace(file)
    sync_folder(file.parent)


def is_safe(url: str) -> bool:
    """Return whether an address may be asked: over https, or on this machine."""
    address = urlparse(url)
    return address.scheme == "https" or (address.scheme == "http" and address.hostname in _HERE)


def has_digest(file: Path, digest: str) -> bool:
    """Return whether the file's hash begins with `digest`, given as `sha256:…` or `md5:…`."""
    kind, _, wanted = digest.partition(":")
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()
    return bool(wanted) and found.startswith(wanted)


class _BrokenOffError(OSError):
    """The host has sent less than it announced."""


class _OnlySafely(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        _check_address(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_address(url: str) -> None:
    if not is_safe(url):
        raise OSError(f"{urlparse(url).scheme}://{urlparse(url).netloc} is not asked: only https is")


def _go_on(url: str, part: Path) -> None:
    with part.open("ab") as out:
        start = out.tell()
        request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
        try:
            answer = urllib.request.build_opener(_OnlySafely).open(request, timeout=_PATIENCE)
        except urllib.error.HTTPError as error:
            if error.code == 416:  # there is nothing behind what has come already
                return
            raise
        with answer:
            if start and answer.status != 206:  # a host that cannot go on begins again
                out.truncate(start := 0)
            _copy(
                answer,
                out,
                announced=answer.headers.get("Content-Length"),
                name=part.name.strip(".").partition(PARTIAL)[0],
            )
        out.flush()
        os.fsync(out.fileno())


def _copy(answer: IO[bytes], out: IO[bytes], *, announced: str | None, name: str) -> None:
    got, behind = 0, out.tell()
    with _bar(name, behind, behind + int(announced) if announced else None) as advance:
        while chunk := answer.read(_CHUNK):
            out.write(chunk)
            got += len(chunk)
            advance(len(chunk))
    if announced is not None and got < int(announced):
        raise _BrokenOffError(f"the connection broke after {got:,} of {int(announced):,} bytes; try again to go on")


@contextmanager
def _bar(name: str, done: int, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show how far a download is, where someone is looking."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=total, completed=done)
        yield lambda count: bar.advance(task, count)
