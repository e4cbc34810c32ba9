"""Published weights are fetched once, and their hash is checked."""

import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlparse

from torch.hub import download_url_to_file, get_dir

from filterscope.errors import UserError


def download(url: str, name: str) -> Path:
    """Return where the weights of the network `name` lie on this disk; fetch them from `url` the first time.

    The file's name ends in the beginning of its SHA-256, which the download must have.

    Raises:
        UserError: the host cannot be reached, or what it sent is damaged.
    """
    host, file_name = urlparse(url).netloc, Path(urlparse(url).path).name
    file = Path(get_dir()) / "checkpoints" / file_name
    if file.is_file():
        return file
    found = re.search(r"-([0-9a-f]{8,})\.", file_name)
    otherwise = f"put {url} at {file} by hand, or give model.weights=<path> or model.weights=null"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with _patience(seconds=30):
            download_url_to_file(url, str(file), found and found[1], progress=sys.stderr.isatty())
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"could not get the weights of {name} from {host} ({reason}); {otherwise}") from error
    except RuntimeError as error:
        if "hash" not in str(error):
            raise
        raise UserError(f"what {host} sent for {name} is damaged ({error}); try again, or {otherwise}") from error
    return file


@contextmanager
def _patience(*, seconds: float) -> Iterator[None]:
    # torch.hub sets no timeout, and a firewall that swallows packets would hold a start for minutes.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
