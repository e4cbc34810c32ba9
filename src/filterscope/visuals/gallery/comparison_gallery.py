"""Another gallery, as far as it is shown beside this one: its verdicts and its atlases, copied."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from filterscope.errors import UserError
from filterscope.visuals.output.site import manifest

_KINDS = ("kernels", "pictures", "crops")


@dataclass(frozen=True, kw_only=True)
class ComparedGallery:
    """What another gallery shows: `layers` by name as in its manifest, `files` by their path below this site.

    `images` says which real images it was made with.
    """

    title: str
    images: str
    layers: Mapping[str, Mapping[str, Any]]
    files: Mapping[str, bytes]

    @property
    def size(self) -> int:
        """How many bytes it adds."""
        return sum(map(len, self.files.values()))

    @classmethod
    def read(cls, folder: Path) -> "ComparedGallery":
        """Read the gallery in a folder, or in the folder `gallery` below it; nothing but pictures and data is taken.

        Raises:
            UserError: there is none, or it is damaged.
        """
        folder = folder / "gallery" if (folder / "gallery").is_dir() else folder
        content: Any = manifest(folder)
        try:
            layers = {str(layer["name"]): _checked(layer) for layer in content["layers"]}
            files = {
                f"beside/{layer['slug']}-{kind}.webp": _picture(folder / "atlas" / f"{layer['slug']}-{kind}.webp")
                for layer in layers.values()
                for kind in _KINDS
                if layer[kind]
            }
            return cls(title=str(content["title"]), images=str(content["images"]), layers=layers, files=files)
        except (KeyError, TypeError, ValueError, OSError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"the gallery in {folder} is damaged: {error}") from error


def _checked(layer: Mapping[str, Any]) -> dict[str, Any]:
    slug, filters = str(layer["slug"]), list(layer["filters"])
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", slug):
        raise ValueError(f"a layer's file is called {slug!r}")
    grids = {
        kind: {side: int(layer[kind][side]) for side in ("columns", "rows")} if layer[kind] else None for kind in _KINDS
    }
    grid = grids["kernels"] or {"columns": 0, "rows": 0}
    if grid["columns"] * grid["rows"] < len(filters):
        raise ValueError(f"{slug} has more filters than pictures")
    if any(each not in (grid, None) for each in grids.values()) or not grids["pictures"]:
        raise ValueError(f"the pictures of {slug} stand in different places")
    known = [
        {
            "verdict": str(each["verdict"]),
            "reason": str(each["reason"]),
            "best": [int(image) for image in each["best"]],
            **{key: float(each[key]) for key in ("activation", "z") if each.get(key) is not None},
        }
        for each in filters
    ]
    return {"name": str(layer["name"]), "slug": slug, "filters": known, **grids}


def _picture(path: Path) -> bytes:
    content = path.read_bytes()
    try:
        with Image.open(path, formats=["WEBP"]) as image:
            image.verify()
    except (UnidentifiedImageError, SyntaxError) as error:
        raise ValueError(f"{path.name} is no picture") from error
    return content
