"""Letters that can be read where people look, and text that fits.

TensorBoard shows a picture of 1000 pixels 350 wide and picks nearest pixels when it shrinks: strokes of letters must
be three pixels wide to survive, so labels are large and bold.
"""

import math
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from filterscope.visuals.drawing.pixels import Pixels

TITLE = 46
NOTE = 30
CAPTION = 36
NAME = 26
SMALLEST = 18
# Of the edges of letters: as many as the eye needs, so that a picture's letters take up little of a PNG's palette.
SHADES = tuple(shade * 255 // 7 for shade in range(8))


@lru_cache
def font(size: int, bold: bool = True) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which matplotlib brings along, in a size in pixels."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


@lru_cache(maxsize=1 << 12)
def text_width(text: str, size: int, *, bold: bool = True) -> float:
    """Return how many pixels wide a text is."""
    return float(font(size, bold).getlength(text))


@dataclass(frozen=True, kw_only=True)
class Stencil:
    """The shape of a text.

    Attributes:
        shades: which of `SHADES` the opacity of each pixel is, uint8 `(h, w)`.
        touched: where it is opaque at all, bool `(h, w)`.
        left: where its left edge lies, to the right of the point it is written at.
        top: where its upper edge lies, below that point.
    """

    shades: Pixels
    touched: np.ndarray[Any, np.dtype[np.bool_]]
    left: int
    top: int


# Numbers and notes come back in every epoch, and shaping them takes longer than all else that is drawn.
@lru_cache(maxsize=1 << 12)
def stencil(text: str, size: int, *, bold: bool, anchor: str, x: float, y: float) -> Stencil:
    """Return the shape of a text written at a point `(x, y)` inside a pixel; `anchor` as Pillow knows it."""
    letters = font(size, bold)
    left, top, right, bottom = (math.floor(edge) for edge in letters.getbbox(text, anchor=anchor))
    left, top = left - 1, top - 1
    mask = Image.new("L", (right - left + 2, bottom - top + 2))
    ImageDraw.Draw(mask).text((x - left, y - top), text, font=letters, fill=255, anchor=anchor)
    shades = np.rint(np.asarray(mask) / 255 * (len(SHADES) - 1)).astype(np.uint8)
    return Stencil(shades=shades, touched=shades > 0, left=left, top=top)


def fitting(text: str, *, width: float, size: int, smallest: int = SMALLEST) -> tuple[str, int]:
    """Return the text and the largest size, not above `size`, at which it fits; the last resort is an ellipsis."""
    while size > smallest and text_width(text, size) > width:
        size -= 1
    while len(text) > 2 and text_width(text, size) > width:
        text = text[:-2].rstrip() + "…"
    return text, size


def named(text: str, *, width: float, size: int = CAPTION, most: int = 2) -> tuple[str, ...]:
    """Break a name into at most `most` caption lines where it would have to shrink much to fit into one."""
    if text_width(text, size) <= 1.15 * width:
        return (text,)
    # A zero-width space lets a line end after a slash, and after a hyphen that does not follow a single letter.
    lines = wrap(re.sub(r"(/|\w\w-)", "\\1\u200b", text), width=1.15 * width, size=size, bold=True)
    if len(lines) > most:
        rest = "".join(line if line.endswith("\u200b") else f"{line} " for line in lines[most - 1 :])
        lines[most - 1 :] = [rest.rstrip()]
    return tuple(line.replace("\u200b", "") for line in lines)


def wrap(text: str, *, width: float, size: int, bold: bool = False) -> list[str]:
    """Break a text into lines that are no wider than `width` pixels, at blanks and zero-width spaces."""
    lines: list[str] = []
    for word in re.findall(r"\s*[^\s\u200b]+\u200b?", text):
        if lines and text_width((lines[-1] + word).replace("\u200b", ""), size, bold=bold) <= width:
            lines[-1] += word
        else:
            lines.append(word.lstrip())
    return lines
