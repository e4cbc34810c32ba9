"""Where a picture is drawn: a byte a pixel for as long as its colours fit into a palette, else in colour."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from filterscope.visuals.lettering import SHADES, stencil
from filterscope.visuals.pixels import MOST, Colour, Indexed, Pixels, Tile

Box = tuple[int, int, int, int]  # left, top, right, bottom; the last two lie outside


class Canvas:
    """A ground to draw on; what comes later lies above, and what does not lie on it is cut off.

    Its pixels are places in a palette until a tile in colour comes or one colour too many; then they become colours,
    which look the same and take three times as long to draw, and more to encode.
    """

    def __init__(self, width: int, height: int, ground: Colour) -> None:
        self.width, self.height, self.ground = width, height, ground
        self._palette: dict[Colour, int] | None = {ground: 0}
        self._tables: dict[Any, Pixels] = {}  # what the colours of tiles and letters are in `_pixels`
        self._pixels: Pixels = np.zeros((height, width), np.uint8)

    def fill(self, colour: Colour, box: Box) -> None:
        """Fill a box."""
        left, top, right, bottom = box
        ink = self._inks(colour, lambda: [colour])[0]
        self._pixels[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = ink

    def outline(self, colour: Colour, box: Box, *, width: int) -> None:
        """Draw the edges of a box, inside of it."""
        left, top, right, bottom = box
        self.fill(colour, (left, top, right, top + width))
        self.fill(colour, (left, bottom - width, right, bottom))
        self.fill(colour, (left, top, left + width, bottom))
        self.fill(colour, (right - width, top, right, bottom))

    def paste(self, tile: Tile, at: tuple[int, int]) -> None:
        """Lay a tile with its upper left corner at a place."""
        if isinstance(tile, Indexed):
            palette = tile.palette
            inks = self._inks(palette.tobytes(), lambda: map(tuple, palette.tolist()))
            pixels = inks.take(tile.places, axis=0)  # six times as fast as [ ]
        else:
            self._turn()
            pixels = tile
        there, part = self._window(at, pixels)
        there[...] = pixels[part]

    def write(
        self,
        text: str,
        at: tuple[float, float],
        *,
        size: int,
        colour: Colour,
        on: Colour | None = None,
        bold: bool = True,
        anchor: str = "la",
    ) -> None:
        """Write a text on the ground, or `on` what was filled in another colour; `anchor` as Pillow knows it."""
        x, y = math.floor(at[0]), math.floor(at[1])
        letters = stencil(text, size, bold=bold, anchor=anchor, x=at[0] - x, y=at[1] - y)
        beneath = self.ground if on is None else on
        inks = self._inks((colour, beneath), lambda: (_mixed(colour, beneath, shade) for shade in SHADES))
        there, part = self._window((x + letters.left, y + letters.top), letters.shades)
        touched = letters.touched[part]
        drawn = inks.take(letters.shades[part], axis=0)
        np.copyto(there, drawn, where=touched if drawn.ndim == 2 else touched[..., None])

    def finished(self) -> Tile:
        """Return what was drawn, uint8 `(H, W, 3)` or places in a palette."""
        if self._palette is None:
            return self._pixels
        return Indexed(places=self._pixels, palette=np.array(list(self._palette), np.uint8))

    def _window(self, at: tuple[int, int], pixels: Pixels) -> tuple[Pixels, tuple[slice, slice]]:
        """Return the part of the canvas on which pixels at a place lie, and which of them do."""
        left, top = at
        height, width = pixels.shape[:2]
        part = slice(max(-top, 0), self.height - top), slice(max(-left, 0), self.width - left)
        return self._pixels[max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)], part

    def _inks(self, key: Any, colours: Callable[[], Iterable[Colour]]) -> Pixels:
        """Return what colours are in `_pixels`: their places in the palette, `(n,)`, or they themselves, `(n, 3)`.

        Where they do not fit into the palette any more, all turns to colour.
        """
        if key not in self._tables:
            asked = list(colours())
            if self._palette is not None:
                places = [self._palette.setdefault(colour, len(self._palette)) for colour in asked]
                if len(self._palette) <= MOST:
                    self._tables[key] = np.array(places, np.uint8)
                    return self._tables[key]
                self._turn()
            self._tables[key] = np.array(asked, np.uint8)
        return self._tables[key]

    def _turn(self) -> None:
        """Draw in colour from here on."""
        if self._palette is not None:
            palette = np.array(list(self._palette)[:MOST], np.uint8)
            self._pixels, self._palette = palette.take(self._pixels, axis=0), None
            self._tables.clear()


def _mixed(above: Colour, beneath: Colour, opacity: int) -> Colour:
    """Return a colour over another, in whole numbers as Pillow mixes them: `opacity` is in [0, 255]."""
    red, green, blue = ((opacity * a + (255 - opacity) * b + 127) // 255 for a, b in zip(above, beneath, strict=True))
    return red, green, blue
