"""Sprite sheets and atlases: many small pictures in one WebP file, encoded within a byte limit."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision.utils import make_grid

from filterscope.visuals.drawing.grid import Pixels

QUALITIES = (75, 65, 50, 35, 20, 10)
MAX_ROW_WIDTH = 520  # pixels
METHOD = 2  # of the encoder, 0 to 6; twice as fast as 4, its default, for files that are 5 % larger


@dataclass(frozen=True, kw_only=True)
class SpriteLayout:
    """The positions of the tiles of a sprite sheet: `places` maps a tile's name to `(left, top, width, height)`."""

    width: int
    height: int
    places: Mapping[str, tuple[int, int, int, int]]

    def draw(self, tiles: Mapping[str, Pixels]) -> Pixels:
        """Return the sheet; each tile is scaled to its place, places without a tile are mid-grey."""
        sheet = Image.new("RGB", (self.width, self.height), (128, 128, 128))
        for name, tile in tiles.items():
            left, top, width, height = self.places[name]
            image = ImageOps.contain(Image.fromarray(tile), (width, height), Image.Resampling.NEAREST)
            sheet.paste(image, (left + (width - image.width) // 2, top + (height - image.height) // 2))
        return np.asarray(sheet)


def layout_rows(rows: Sequence[Mapping[str, tuple[int, int]]]) -> SpriteLayout:
    """Lay out tiles of `(width, height)` row by row; a row wider than `MAX_ROW_WIDTH` is wrapped."""
    places: dict[str, tuple[int, int, int, int]] = {}
    top = widest = 0
    for row in rows:
        left = tallest = 0
        for name, (width, height) in row.items():
            if left and left + width > MAX_ROW_WIDTH:
                top, left, tallest = top + tallest, 0, 0
            places[name] = (left, top, width, height)
            left, tallest = left + width, max(tallest, height)
            widest = max(widest, left)
        top += tallest
    return SpriteLayout(width=max(widest, 1), height=max(top, 1), places=places)


def grid_shape(count: int) -> tuple[int, int]:
    """Return the columns and rows of an atlas; they depend on the count alone, so all atlases of a layer agree."""
    columns = math.ceil(math.sqrt(max(count, 1)))
    return columns, max(1, -(-count // columns))


def draw_atlas(tiles: Sequence[Pixels] | Pixels) -> Pixels:
    """Return an image of tiles of one size in the grid of `grid_shape`, row by row."""
    columns, _ = grid_shape(len(tiles))
    images = torch.from_numpy(np.stack(list(tiles))).permute(0, 3, 1, 2)
    atlas: Pixels = make_grid(images, nrow=columns, padding=0, pad_value=128).permute(1, 2, 0).contiguous().numpy()
    return atlas


def encode_webp(pixels: Pixels, max_bytes: int | None = None) -> bytes:
    """Encode pixels as WebP.

    Args:
        pixels: uint8 `(H, W, 3)`.
        max_bytes: the best quality that fits is taken, and the image is halved where none fits; None: lossless.
    """
    image = Image.fromarray(pixels)
    if max_bytes is None:
        return _webp(image, quality=50, lossless=True)
    while True:
        for quality in QUALITIES:
            content = _webp(image, quality=quality)
            if len(content) <= max_bytes or max(image.size) <= 8:
                return content
        image = image.resize((max(1, image.width // 2), max(1, image.height // 2)), Image.Resampling.BOX)


def image_url(pixels: Pixels | bytes) -> str:
    """Return pixels or a WebP file as a data URL: a page from the disk may cut tiles out of no other image."""
    content = pixels if isinstance(pixels, bytes) else encode_webp(pixels)
    return f"data:image/webp;base64,{base64.b64encode(content).decode()}"


def _webp(image: Image.Image, *, quality: int, lossless: bool = False) -> bytes:
    file = io.BytesIO()
    image.save(file, format="webp", quality=quality, lossless=lossless, method=METHOD)
    return file.getvalue()
