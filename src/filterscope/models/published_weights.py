"""Published weights are fetched once, and their hash is checked whenever they are used."""

import re
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlparse

from filelock import FileLock
from torch.hub import get_dir

from filterscope.errors import UserError
from filterscope.storage.download import WrongHashError, fetch, has_digest


def download(url: str, name: str) -> Path:
    """Return where the weights of the network `name` lie on this disk; fetch them from `url` the first time.

    The file's name ends in the beginning of its SHA-256, which the file must have, whoever put it there.

    Raises:
        UserError: the host cannot be reached, or the file is damaged.
    """
    host, file_name = urlparse(url).netloc, Path(urlparse(url).path).name
    file = Path(get_dir()) / "checkpoints" / file_name
    found = re.search(r"-([0-9a-f]{8,})\.", file_name)
    if found is None:
        raise UserError(f"the weights of {name} at {url} have no hash in their name; give model.weights=<path>")
    digest = f"sha256:{found[1]}"
    otherwise = f"put {url} at {file} by hand, or give model.weights=<path> or model.weights=null"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_name(f".{file_name}.lock")):
            if not file.is_file():
                fetch(url, file, digest=digest)
            elif not has_digest(file, digest):
                raise UserError(
                    f"{file} is damaged or another file: its hash is not {digest}; delete it, or {otherwise}"
                )
    except WrongHashError as error:
        raise UserError(f"what {host} sent for {name} is damaged ({error}); try again, or {otherwise}") from error
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"could not get the weights of {name} from {host} ({reason}); {otherwise}") from error
    return file
