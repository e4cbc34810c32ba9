"""Many small pictures in one file: where each lies in it, and a file that stays below a size."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from filterscope.visuals.drawing.pixels import Pixels

QUALITIES = (75, 65, 50, 35, 20, 10)
_SHELF = 520  # pixels: a sheet is about as wide


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where tiles lie in a sheet: `places` are `(left, top, width, height)` by the tile's name, in pixels."""

    width: int
    height: int
    places: Mapping[str, tuple[int, int, int, int]]

    def sheet(self, tiles: Mapping[str, Pixels]) -> Pixels:
        """Return the sheet with its tiles, each as large as its place allows, the rest mid-grey."""
        whole = Image.new("RGB", (self.width, self.height), (128, 128, 128))
        for name, tile in tiles.items():
            left, top, width, height = self.places[name]
            image = ImageOps.contain(Image.fromarray(tile), (width, height), Image.Resampling.NEAREST)
            whole.paste(image, (left + (width - image.width) // 2, top + (height - image.height) // 2))
        return np.asarray(whole)


def layout(rows: Sequence[Mapping[str, tuple[int, int]]]) -> Layout:
    """Lay out tiles of `(width, height)` in rows, one below the other; a row that is too long is broken."""
    places: dict[str, tuple[int, int, int, int]] = {}
    top = widest = 0
    for row in rows:
        left = tallest = 0
        for name, (width, height) in row.items():
            if left and left + width > _SHELF:
                top, left, tallest = top + tallest, 0, 0
            places[name] = (left, top, width, height)
            left, tallest = left + width, max(tallest, height)
            widest = max(widest, left)
        top += tallest
    return Layout(width=max(widest, 1), height=max(top, 1), places=places)


@dataclass(frozen=True, kw_only=True)
class Atlas:
    """One tile of each filter, in the order of their numbers, in a file with so many columns and rows."""

    columns: int
    rows: int
    content: bytes

    @property
    def grid(self) -> dict[str, int]:
        """Columns and rows, as plain data."""
        return {"columns": self.columns, "rows": self.rows}


def atlas(tiles: Sequence[Pixels] | Pixels, *, most: int | None = None) -> Atlas:
    """Put tiles of one size into an atlas: without loss, or with as little as keeps it below `most` bytes.

    As many tiles stand in the same columns and rows whatever their shape, so that one place is right in all atlases.
    """
    height, width = tiles[0].shape[:2]
    columns = math.ceil(math.sqrt(len(tiles)))
    rows = -(-len(tiles) // columns)
    whole = np.full((rows * height, columns * width, 3), 128, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = i // columns * height, i % columns * width
        whole[top : top + height, left : left + width] = tile
    return Atlas(columns=columns, rows=rows, content=lossless(whole) if most is None else within(whole, most))


def lossless(pixels: Pixels) -> bytes:
    """Return a WebP file of exactly these pixels."""
    return _webp(Image.fromarray(pixels), lossless=True, quality=50)


def within(pixels: Pixels, most: int) -> bytes:
    """Return a WebP file of at most `most` bytes: of the best quality that fits, shrunk where none does."""
    image = Image.fromarray(pixels)
    while True:
        for quality in QUALITIES:
            content = _webp(image, quality=quality)
            if len(content) <= most or max(image.size) <= 8:
                return content
        image = image.resize((max(1, image.width // 2), max(1, image.height // 2)), Image.Resampling.BOX)


def _webp(image: Image.Image, *, quality: int, lossless: bool = False) -> bytes:
    file = io.BytesIO()
    image.save(file, format="webp", quality=quality, lossless=lossless, method=4)
    return file.getvalue()
