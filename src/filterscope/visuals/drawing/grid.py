"""The layout of every picture: tiles in a grid with captions, below a header with title, notes and legends."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from filterscope.visuals.drawing.text import (
    CAPTION,
    NAME,
    NOTE,
    SMALLEST,
    TITLE,
    draw_text,
    fitting,
    is_number,
    label_lines,
    text_width,
    two_lines,
    wrap,
)

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
"""Colours as uint8, `(H, W, 3)` where nothing else is said."""
Colour = tuple[int, int, int]

WIDTH = 1000
MARGIN = 24
GAP = 10
BACKGROUND: Colour = (24, 26, 31)
EDGE: Colour = (94, 101, 115)
INK: Colour = (245, 245, 242)
FAINT: Colour = (188, 194, 205)
# The palette of Okabe and Ito, which remains distinguishable under the common kinds of colour blindness; vermilion is
# lighter here, so that text in it is readable on the background.
BLUE: Colour = (86, 180, 233)
ORANGE: Colour = (230, 159, 0)
VERMILION: Colour = (236, 112, 20)
YELLOW: Colour = (240, 228, 66)

FRAME = 6  # pixels
_FRAME_OUTSIDE = 4  # pixels of a frame that lie outside its tile, because a small kernel's outer weights must be seen
_LINE = round(1.3 * NOTE)  # height of a line of notes
_UNDER_TITLE = MARGIN + TITLE + GAP
_BAR = 140  # width of a colour bar


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One tile of a grid.

    Attributes:
        pixels: the tile, uint8 `(h, w, 3)`.
        caption: the lines below the tile; one that is too wide at any size takes two.
        toned: how many of the last caption lines have the colour of the frame.
        frame: the colour of a frame around the tile, None for no frame.
        mark: a sign (✓ or ✗) in the upper right corner.
    """

    pixels: Pixels
    caption: tuple[str, ...] = ()
    toned: int = 1
    frame: Colour | None = None
    mark: str = ""


@dataclass(frozen=True, kw_only=True)
class Legend:
    """A colour bar in the header: `colours` is uint8 `(n, 3)` from `low` to `high`."""

    colours: Pixels
    low: str
    high: str


def blank(height: int, width: int) -> Pixels:
    """Return a tile of the background's colour."""
    return np.full((height, width, 3), BACKGROUND, np.uint8)


def column_count(count: int, most: int = 8) -> int:
    """Return the number of columns, at most `most`, that fills the rows of a grid of `count` tiles most evenly."""
    rows = -(-max(count, 1) // most)
    return -(-max(count, 1) // rows)


def tile_size(columns: int, *, labels: int = 0, largest: int = 230) -> int:
    """Return how wide, in pixels, a tile can be in a grid of `columns` columns beside row labels `labels` wide."""
    return min(largest, (WIDTH - 2 * MARGIN - labels - (columns - 1) * GAP) // columns)


def grid(
    cells: Sequence[Cell],
    *,
    columns: int,
    title: str,
    header_note: str = "",
    notes: Sequence[str] = (),
    legend: Legend | None = None,
    key: Sequence[tuple[str, Colour]] = (),
    thumbnail: Pixels | None = None,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    label_width: int = 0,
) -> Pixels:
    """Draw tiles row by row below a header.

    Args:
        cells: the tiles, which keep their size; a column is as wide as its widest tile.
        columns: how many tiles a row has.
        title: at the left of the first line.
        header_note: at the right of the first line, such as the epoch.
        notes: lines below the title; empty ones are left out.
        legend: the colour bar at the right of the notes.
        key: the meaning of the frames' colours, below the notes.
        thumbnail: a picture at the left of the header.
        row_labels: at the left of the rows.
        column_labels: above the columns.
        label_width: pixels that are kept free for `row_labels`.

    Returns:
        uint8 `(H, 1000, 3)`.
    """
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    widths = [max(row[c].pixels.shape[1] for row in rows if c < len(row)) for c in range(min(columns, len(cells)))]
    heights = [max(cell.pixels.shape[0] for cell in row) for row in rows]
    free = WIDTH - 2 * MARGIN - label_width - sum(widths)
    gap = min(free // max(len(widths) - 1, 1), 3 * GAP) if len(rows) > 1 or len(widths) > 1 else GAP
    start = MARGIN + label_width + (free // 2 if len(widths) == 1 else 0)
    lefts = [start + sum(widths[:c]) + c * gap for c in range(len(widths))]
    rows = [[_broken(cell, width + gap - 8) for cell, width in zip(row, widths, strict=False)] for row in rows]

    left = MARGIN + (0 if thumbnail is None else thumbnail.shape[1] + 2 * GAP)  # of the header's text
    room = WIDTH - MARGIN - left
    lines = [line for note in notes for line in wrap(note, width=room - _legend_width(legend), size=NOTE)]
    key_top = _UNDER_TITLE + max(len(lines), legend is not None) * _LINE + GAP
    top = key_top + (_LINE + GAP if key else 0) + 6
    if thumbnail is not None:
        top = max(top, MARGIN + thumbnail.shape[0] + 2 * GAP)
    top += round(1.3 * CAPTION) if column_labels else 0
    tops = [top]
    for row, height in zip(rows, heights, strict=True):
        tops.append(tops[-1] + height + _caption_height(row) + GAP)

    image = Image.new("RGB", (WIDTH, tops[-1] + MARGIN - GAP), BACKGROUND)
    draw = ImageDraw.Draw(image)
    if thumbnail is not None:
        image.paste(Image.fromarray(thumbnail), (MARGIN, MARGIN))
    title_room = room - (text_width(header_note, TITLE) + 3 * GAP if header_note else 0)
    _write(draw, title, (left, MARGIN - 6), width=title_room, size=TITLE, colour=INK, anchor="l")
    _write(draw, header_note, (WIDTH - MARGIN, MARGIN - 6), width=WIDTH, size=TITLE, colour=FAINT, anchor="r")
    for i, line in enumerate(lines):
        draw_text(draw, (left, _UNDER_TITLE + i * _LINE), line, size=NOTE, colour=FAINT, bold=False)
    if legend is not None:
        _draw_legend(image, draw, legend)
    _draw_key(draw, key, (left, key_top))
    for label, x, width in zip(column_labels, lefts, widths, strict=False):
        _write(draw, label, (x, top - round(1.25 * CAPTION)), width=width + gap - 4, size=CAPTION, colour=FAINT)
    sizes = _caption_sizes(rows, widths, gap)
    for i, (row, y, height) in enumerate(zip(rows, tops, heights, strict=False)):
        if i < len(row_labels):
            said, size = label_lines(row_labels[i], width=label_width - GAP, height=height)
            for k, line in enumerate(said):
                at = (MARGIN, y + (height - round((len(said) - 2 * k) * 1.15 * size)) // 2)
                _write(draw, line, at, width=label_width - GAP, size=size, colour=FAINT, anchor="l")
        for cell, x, width in zip(row, lefts, widths, strict=False):
            h, w = cell.pixels.shape[:2]
            _draw_tile(image, draw, cell, (x + (width - w) // 2, y + (height - h) // 2))
            for k, line in enumerate(cell.caption):
                toned = k >= len(cell.caption) - cell.toned
                _write(
                    draw,
                    line,
                    (x + (8 - gap) // 2, y + height + 1 + round(k * 1.15 * CAPTION)),
                    width=width + gap - 8,
                    size=sizes[is_number(line)],
                    colour=cell.frame if toned and cell.frame is not None else INK,
                )
    draw.rectangle((0, 0, WIDTH - 1, image.height - 1), outline=EDGE, width=2)
    return np.asarray(image)


def _draw_tile(image: Image.Image, draw: ImageDraw.ImageDraw, cell: Cell, at: tuple[int, int]) -> None:
    left, top = at
    height, width = cell.pixels.shape[:2]
    image.paste(Image.fromarray(cell.pixels), at)
    if cell.frame is not None:
        near, far = _FRAME_OUTSIDE, _FRAME_OUTSIDE - 1
        draw.rectangle(
            (left - near, top - near, left + width + far, top + height + far), outline=cell.frame, width=FRAME
        )
    if cell.mark:
        size = 56
        left += width - size
        draw.rectangle((left, top, left + size - 1, top + size - 1), fill=cell.frame or INK)
        at_middle = (left + size / 2, top + size / 2)
        draw_text(draw, at_middle, cell.mark, size=50, colour=BACKGROUND, anchor="mm")


def _draw_key(draw: ImageDraw.ImageDraw, key: Sequence[tuple[str, Colour]], at: tuple[int, int]) -> None:
    left, top = at
    size = NOTE
    while (
        size > SMALLEST and sum(text_width(text, size) + size + 4 + 2 * GAP for text, _ in key) > WIDTH - MARGIN - left
    ):
        size -= 1
    for text, colour in key:
        draw.rectangle((left, top + 4, left + size - 4, top + size), fill=colour)
        draw_text(draw, (left + size + 4, top), text, size=size, colour=colour)
        left += size + 4 + round(text_width(text, size)) + 2 * GAP


def _legend_width(legend: Legend | None) -> int:
    if legend is None:
        return 0
    return round(text_width(legend.low, NOTE) + text_width(legend.high, NOTE)) + _BAR + 4 * GAP


def _draw_legend(image: Image.Image, draw: ImageDraw.ImageDraw, legend: Legend) -> None:
    left = WIDTH - MARGIN - _legend_width(legend) + 2 * GAP
    bar_left = left + round(text_width(legend.low, NOTE)) + GAP
    draw_text(draw, (left, _UNDER_TITLE), legend.low, size=NOTE, colour=FAINT)
    draw_text(draw, (bar_left + _BAR + GAP, _UNDER_TITLE), legend.high, size=NOTE, colour=FAINT)
    columns = np.linspace(0, len(legend.colours) - 1, _BAR).round().astype(int)
    image.paste(Image.fromarray(np.tile(legend.colours[columns], (26, 1, 1))), (bar_left, _UNDER_TITLE + 6))


def _broken(cell: Cell, width: int) -> Cell:
    """Return a cell whose caption lines fit into a width at some size."""
    lines = [two_lines(line, width=width) for line in cell.caption]
    toned = sum(map(len, lines[len(lines) - cell.toned :])) if lines else 0
    return replace(cell, caption=tuple(part for line in lines for part in line), toned=toned)


def _caption_height(row: Sequence[Cell]) -> int:
    lines = max(len(cell.caption) for cell in row)
    return round(lines * 1.15 * CAPTION) + (4 if lines else 0)


def _caption_sizes(rows: Sequence[Sequence[Cell]], widths: Sequence[int], gap: int) -> dict[bool, int]:
    """Return one font size for all numbers (True) and one for all names (False); only very long names are smaller."""
    sizes: dict[bool, list[int]] = {True: [CAPTION], False: [CAPTION]}
    for row in rows:
        for cell, width in zip(row, widths, strict=False):
            for line in cell.caption:
                sizes[is_number(line)].append(fitting(line, width=width + gap - 8, size=CAPTION)[1])
    return {True: min(sizes[True]), False: max(min(sizes[False]), NAME)}


def _write(
    draw: ImageDraw.ImageDraw,
    text: str,
    at: tuple[int, int],
    *,
    width: float,
    size: int,
    colour: Colour,
    anchor: str = "m",
) -> None:
    """Write a text that shrinks until it fits into a width; `anchor` is Pillow's horizontal anchor `l`, `m` or `r`."""
    text, fitted = fitting(text, width=width, size=size)
    x = at[0] + width / 2 if anchor == "m" else at[0]
    # All labels of a line have one baseline, also those that had to shrink.
    draw_text(draw, (x, at[1] + 0.95 * size), text, size=fitted, colour=colour, anchor=f"{anchor}s")
