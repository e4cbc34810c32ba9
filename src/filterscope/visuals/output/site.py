"""A static site, and how it is written to a folder: completely or not at all."""

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
    """Files by their path below the site's folder.

    Attributes:
        files: among them `index.html`, and `gallery.json`, which describes the content and names filterscope as author.
        description: explains in Markdown what the site shows.
    """

    files: Mapping[str, bytes]
    description: str = ""

    @property
    def size(self) -> int:
        """The size of all files, in bytes."""
        return sum(map(len, self.files.values()))


def check_site(folder: Path) -> None:
    """Raise a `UserError` if a folder exists that is neither empty nor a site of filterscope."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict) or content.get("made_by") != MADE_BY:
        raise UserError(f"{folder} exists and is not a gallery of filterscope, so it is not replaced")


def write_site(folder: Path, site: Site) -> None:
    """Write all files below a folder; an older site of filterscope is replaced once the new one is complete.

    Raises:
        UserError: the folder exists and is not a site of filterscope.
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
