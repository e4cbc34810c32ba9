"""Fonts and text that fits: labels are large and bold, because TensorBoard shows a picture 350 pixels wide.

It shrinks the 1000 pixels of a picture by taking the nearest ones, so only strokes three pixels wide survive.
"""

import re
from functools import lru_cache
from pathlib import Path

import matplotlib
from PIL import ImageFont

TITLE = 46
NOTE = 30
CAPTION = 36
NAME = 26
SMALLEST = 18


@lru_cache
def font(size: int, bold: bool = True) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which matplotlib ships, in a size in pixels."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    # The basic layout is faster, and draws the same where the library for complex scripts is missing.
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=1 << 12)
def text_width(text: str, size: int, *, bold: bool = True) -> float:
    """Return how many pixels wide a text is."""
    return float(font(size, bold).getlength(text))


def fitting(text: str, *, width: float, size: int, smallest: int = SMALLEST) -> tuple[str, int]:
    """Return the text and the largest size, not above `size`, at which it fits; the last resort is an ellipsis."""
    while size > smallest and text_width(text, size) > width:
        size -= 1
    while len(text) > 2 and text_width(text, size) > width:
        text = text[:-2].rstrip() + "…"
    return text, size


def caption_lines(text: str, *, width: float, size: int = CAPTION, most: int = 2) -> tuple[str, ...]:
    """Break a name into at most `most` caption lines if it had to shrink much to fit into one."""
    if text_width(text, size) <= 1.15 * width:
        return (text,)
    # A zero-width space lets a line end after a slash, and after a hyphen that does not follow a single letter.
    lines = wrap(re.sub(r"(/|\w\w-)", "\\1\u200b", text), width=1.15 * width, size=size, bold=True)
    if len(lines) > most:
        rest = "".join(line if line.endswith("\u200b") else f"{line} " for line in lines[most - 1 :])
        lines[most - 1 :] = [rest.rstrip()]
    return tuple(line.replace("\u200b", "") for line in lines)


def wrap(text: str, *, width: float, size: int, bold: bool = False) -> list[str]:
    """Break a text into lines no wider than `width` pixels, at blanks and zero-width spaces."""
    lines: list[str] = []
    for word in re.findall(r"\s*[^\s\u200b]+\u200b?", text):
        if lines and text_width((lines[-1] + word).replace("\u200b", ""), size, bold=bold) <= width:
            lines[-1] += word
        else:
            lines.append(word.lstrip())
    return lines
