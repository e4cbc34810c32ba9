"""Fetching a set once, one process at a time; without a network, saying what to fetch by hand and where to put it."""

import socket
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlparse

from filelock import FileLock

from filterscope.errors import UserError

_PATIENCE = 30  # seconds of silence from a host


@contextmanager
def download_lock(what: str, *, url: str, files: str, place: Path) -> Iterator[None]:
    """Hold the place's lock while something is downloaded into it.

    Whoever waited for the lock finds the files there. `what`, `files` and `url` are for the message: what is wanted,
    and which files below the address would do if put into `place` by hand.

    Raises:
        UserError: the host is not reached, what came is damaged, or the place cannot be written.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_PATIENCE)
    try:
        place.mkdir(parents=True, exist_ok=True)
        with FileLock(place / ".lock"):
            yield
    except (OSError, RuntimeError, HTTPException, EOFError, tarfile.TarError) as error:
        reason = getattr(error, "reason", None) or (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise UserError(
            f"could not download {what} from {urlparse(url).netloc or url} ({reason}); "
            f"put {files} from {url} into {place} by hand, or give data.root=<the folder that has it>"
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def missing_data_error(what: str, *, root: str, files: str) -> UserError:
    """Return the error for a set that is not below `root` and may not be downloaded."""
    state = "holds no" if Path(root).expanduser().is_dir() else "does not exist; it should hold"
    return UserError(
        f"data.root={root} {state} {what} ({files}); give another data.root, or data.download=true to fetch it"
    )
