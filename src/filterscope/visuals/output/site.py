"""A folder of linked files as what a visual shows, and how it gets to the disk: whole, or not at all."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from filterscope.errors import UserError
from filterscope.storage.atomic import PARTIAL, write_file

MANIFEST = "gallery.json"
MADE_BY = "filterscope"


@dataclass(frozen=True, kw_only=True)
class Site:
    """Files by their path below the site, `index.html` among them; `description` says in Markdown what one sees.

    The file `gallery.json` says what the site holds, by whom it was made first of all.
    """

    files: Mapping[str, bytes]
    description: str = ""

    @property
    def size(self) -> int:
        """How many bytes the files have together."""
        return sum(map(len, self.files.values()))


def manifest(folder: Path) -> dict[str, object]:
    """Return what a site says of itself.

    Raises:
        UserError: the folder holds no site of filterscope.
    """
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is not a gallery of filterscope: there is no readable {MANIFEST} in it") from error
    if not isinstance(content, dict) or content.get("made_by") != MADE_BY:
        raise UserError(f"{folder} is not a gallery of filterscope: its {MANIFEST} is another's")
    return content


def check_site(folder: Path) -> None:
    """Raise a `UserError` where a folder exists that is not ours to replace."""
    if not folder.exists():
        return
    if folder.is_dir() and not any(folder.iterdir()):
        return
    try:
        manifest(folder)
    except UserError as error:
        raise UserError(f"{folder} exists and is no gallery of filterscope; it is left as it is") from error


def write_site(folder: Path, site: Site) -> None:
    """Write all files below a folder; an older site of ours in its place is replaced when the new one is complete.

    Raises:
        UserError: the folder exists and is not ours.
    """
    check_site(folder)
    new, old = (folder.with_name(f".{folder.name}.{which}{PARTIAL}") for which in ("new", "old"))
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        for name, content in site.files.items():
            write_file(new / name, content)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
