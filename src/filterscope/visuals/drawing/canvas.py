"""Where a picture is drawn: a byte a pixel for as long as its colours fit into a palette, else in colour."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from filterscope.visuals.drawing.pixels import MOST, Colour, Indexed, Pixels, Tile
from filterscope.visuals.drawing.text import SHADES, stencil

Box = tuple[int, int, int, int]  # left, top, right, bottom; the last two lie outside

_ALL = slice(None), slice(None)


class Canvas:
    """A ground to draw on; what comes later lies above, and what does not lie on it is cut off.

    Its pixels are places in a palette until a tile in colour comes or one colour too many; then they become colours,
    which look the same and are three times the bytes to draw and to encode. Whoever knows that they will begins
    `in_colour`.
    """

    def __init__(self, width: int, height: int, ground: Colour, *, in_colour: bool = False) -> None:
        self.width, self.height, self.ground = width, height, ground
        self._palette: dict[Colour, int] | None = {ground: 0}
        self._tables: dict[Any, Pixels] = {}  # what the colours of tiles and letters are in `_pixels`
        if in_colour:
            self._palette = None
            self._pixels: Pixels = np.empty((height, width, 3), np.uint8)
            self._pixels.reshape(height, -1)[...] = np.tile(np.array(ground, np.uint8), width)  # line by line is faster
        else:
            self._pixels = np.zeros((height, width), np.uint8)

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
            pixels = inks.take(tile.places, axis=0)
        else:
            self._turn()
            pixels = tile
        rows, columns, part = self._window(at, pixels)
        self._pixels[rows, columns] = pixels[part]

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
        rows, columns, part = self._window((x + letters.left, y + letters.top), letters.shades)
        drawn, touched = inks.take(letters.shades[part], axis=0), letters.touched[part]
        if drawn.ndim == 2:
            np.copyto(self._pixels[rows, columns], drawn, where=touched)
        else:  # by lines of bytes, in half the time
            lines = self._pixels.reshape(self.height, -1)[rows, 3 * columns.start : 3 * columns.stop]
            np.copyto(lines, drawn.reshape(len(drawn), 3 * drawn.shape[1]), where=touched.repeat(3, axis=1))

    def finished(self) -> Tile:
        """Return what was drawn, uint8 `(H, W, 3)` or places in a palette."""
        if self._palette is None:
            return self._pixels
        return Indexed(places=self._pixels, palette=np.array(list(self._palette), np.uint8))

    def _window(self, at: tuple[int, int], pixels: Pixels) -> tuple[slice, slice, tuple[slice, slice]]:
        """Return the rows and columns of the canvas on which pixels at a place lie, and which of them do."""
        left, top = at
        height, width = pixels.shape[:2]
        if 0 <= left <= self.width - width and 0 <= top <= self.height - height:  # nearly always
            return slice(top, top + height), slice(left, left + width), _ALL
        part = slice(max(-top, 0), max(self.height - top, 0)), slice(max(-left, 0), max(self.width - left, 0))
        rows = slice(max(top, 0), max(min(top + height, self.height), 0))
        return rows, slice(max(left, 0), max(min(left + width, self.width), 0)), part

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
