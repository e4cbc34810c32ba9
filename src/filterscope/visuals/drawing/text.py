"""Fonts and text that fits: labels are large and bold, because TensorBoard shows a picture 350 pixels wide.

It shrinks the 1000 pixels of a picture by taking the nearest ones, so only strokes three pixels wide survive.
"""

import logging
import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import matplotlib
from matplotlib.font_manager import findSystemFonts
from matplotlib.ft2font import FT2Font
from PIL import ImageDraw, ImageFont, features

log = logging.getLogger(__name__)

TITLE = 46
NOTE = 30
CAPTION = 36
NAME = 26
SMALLEST = 18


def draw_text(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    *,
    size: int,
    colour: tuple[int, int, int],
    bold: bool = True,
    anchor: str = "la",
) -> None:
    """Draw a text in a font that has its letters; letters that no installed font has are drawn as their numbers.

    Args:
        draw: draws on the picture.
        at: the position of the anchor in pixels.
        text: of one line.
        size: of the font in pixels.
        colour: of the letters.
        bold: whether the letters are bold.
        anchor: Pillow's text anchor.
    """
    shown, path, shaped = _lettered(text, bold)
    draw.text(at, shown, colour, _font(path, size, shaped), anchor=anchor)


@lru_cache(maxsize=1 << 12)
def text_width(text: str, size: int, *, bold: bool = True) -> float:
    """Return how many pixels wide a text is."""
    shown, path, shaped = _lettered(text, bold)
    return float(_font(path, size, shaped).getlength(shown))


@lru_cache
def _font(path: str, size: int, shaped: bool) -> ImageFont.FreeTypeFont:
    # The basic layout is faster, and draws the same except for scripts that join or stack letters.
    layout = ImageFont.Layout.RAQM if shaped and features.check("raqm") else ImageFont.Layout.BASIC
    return ImageFont.truetype(path, size, layout_engine=layout)


@lru_cache(maxsize=1 << 12)
def _lettered(text: str, bold: bool) -> tuple[str, str, bool]:
    """Return a text as it is drawn, the path of a font that has its letters, and whether letters join or stack."""
    text = unicodedata.normalize("NFC", text)
    own = _own_font(bold)
    shaped = any(unicodedata.bidirectional(c) in ("R", "AL") or unicodedata.category(c) in ("Mn", "Mc") for c in text)
    missing = {ord(c) for c in text} - _letters(own)
    if not missing:
        return text, own, shaped
    for path in _other_fonts(bold):
        if {ord(c) for c in text} <= _letters(path):
            return text, path, shaped
    _warn_once()
    return "".join(f"[{ord(c):X}]" if ord(c) in missing else c for c in text), own, shaped


def _own_font(bold: bool) -> str:
    """Return the path of DejaVu Sans, which matplotlib ships."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name)


@lru_cache
def _letters(path: str) -> frozenset[int]:
    """Return the code points that a font can draw in any size."""
    try:
        ImageFont.truetype(path, NOTE)  # fails for fonts that are bitmaps of one size, such as coloured emoji
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


def _other_fonts(bold: bool) -> Iterator[str]:
    yield from sorted(_system_fonts(), key=lambda path: (("bold" in Path(path).stem.lower()) != bold, path))


@lru_cache
def _system_fonts() -> tuple[str, ...]:
    return tuple(findSystemFonts())


@lru_cache
def _warn_once() -> None:
    log.warning(
        "no installed font has all letters of the names: those are drawn as numbers, such as [5411]; "
        "a font such as Noto Sans CJK has them"
    )


def fitting(text: str, *, width: float, size: int) -> tuple[str, int]:
    """Return the text and the largest size, not above `size`, at which it fits.

    The last resort is an ellipsis, but never in a number, which would then be another one.
    """
    smallest = 6 if is_number(text) else SMALLEST
    while size > smallest and text_width(text, size) > width:
        size -= 1
    while len(text) > 2 and text_width(text, size) > width:
        text = text[:-2].rstrip() + "…"
    return text, size


def is_number(text: str) -> bool:
    """Return whether a text is a number, a share or a range of numbers."""
    return re.fullmatch(r"[\d.…e%±−]+", text) is not None


def two_lines(text: str, *, width: float) -> tuple[str, ...]:
    """Break a caption that is too wide at any size: a range of numbers at its dots, a single word in its middle."""
    if text_width(text, SMALLEST) <= width:
        return (text,)
    if is_number(text):
        low, dots, high = text.partition("…")
        return (f"{low}{dots}", high) if dots else (text,)
    lines = caption_lines(text, width=width / 1.15, size=SMALLEST)  # which lets lines be 1.15 times as wide
    if len(lines) == 1:
        middle = (len(text) + 1) // 2
        lines = (f"{text[:middle]}-", text[middle:])
    return lines if all(text_width(line, SMALLEST) <= width for line in lines) else (text,)


def caption_lines(text: str, *, width: float, size: int = CAPTION) -> tuple[str, ...]:
    """Break a name into at most two caption lines if it had to shrink much to fit into one."""
    if text_width(text, size) <= 1.15 * width:
        return (text,)
    # A zero-width space lets a line end after a slash, and after a hyphen that does not follow a single letter.
    lines = wrap(re.sub(r"(/|\w\w-)", "\\1\u200b", text), width=1.15 * width, size=size, bold=True)
    if len(lines) > 2:
        rest = "".join(line if line.endswith("\u200b") else f"{line} " for line in lines[1:])
        lines[1:] = [rest.rstrip()]
    return tuple(line.replace("\u200b", "") for line in lines)


def label_lines(text: str, *, width: float, height: float) -> tuple[list[str], int]:
    """Return the lines of a row's label and the largest size of letters at which they fit beside a tile."""
    for size in range(CAPTION, SMALLEST - 1, -1):
        lines = wrap(text, width=width, size=size, bold=True)
        if len(lines) * 1.15 * size <= height and all(text_width(line, size) <= width for line in lines):
            return lines, size
    most = max(int(height / (1.15 * SMALLEST)), 1)
    return [*lines[: most - 1], " ".join(lines[most - 1 :])], SMALLEST


def wrap(text: str, *, width: float, size: int, bold: bool = False) -> list[str]:
    """Break a text into lines no wider than `width` pixels, at blanks and zero-width spaces."""
    lines: list[str] = []
    for word in re.findall(r"\s*[^\s\u200b]+\u200b?", text):
        if lines and text_width((lines[-1] + word).replace("\u200b", ""), size, bold=bold) <= width:
            lines[-1] += word
        else:
            lines.append(word.lstrip())
    return lines
