"""The one way a picture is put together: tiles in a grid, their captions, and a header that says what one sees."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from filterscope.visuals.drawing.canvas import Canvas
from filterscope.visuals.drawing.pixels import Colour, Indexed, Pixels, Tile
from filterscope.visuals.drawing.text import (
    CAPTION,
    NAME,
    NOTE,
    SMALLEST,
    TITLE,
    fitting,
    text_width,
    wrap,
)

WIDTH = 1000
MARGIN = 24
GAP = 10
BACKGROUND: Colour = (24, 26, 31)
EDGE: Colour = (94, 101, 115)
INK: Colour = (245, 245, 242)
FAINT: Colour = (188, 194, 205)
# The palette of Okabe and Ito, which stays apart under the common kinds of colour blindness; vermilion is lighter here,
# so that text in it can be read on the background.
BLUE: Colour = (86, 180, 233)
ORANGE: Colour = (230, 159, 0)
GREEN: Colour = (0, 158, 115)
VERMILION: Colour = (236, 112, 20)
PURPLE: Colour = (204, 121, 167)
YELLOW: Colour = (240, 228, 66)

FRAME = 6
OUTSIDE = 4  # pixels of a frame that lie around its tile
_LINE = round(1.3 * NOTE)  # of notes
_UNDER_TITLE = MARGIN + TITLE + GAP


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One tile of a grid.

    `caption` has a line per entry, drawn under the tile; the last `toned` of them take the colour of the `frame`, which
    is drawn around the tile. `mark` is a sign (✓ or ✗) in its corner.
    """

    pixels: Tile
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


def shape(count: int, most: int = 8) -> int:
    """Return how many columns, at most `most`, fill the rows of a grid of `count` tiles most evenly."""
    rows = -(-max(count, 1) // most)
    return -(-max(count, 1) // rows)


def side(columns: int, *, labels: int = 0, largest: int = 230) -> int:
    """Return how wide a tile can be in a grid of so many columns beside row labels of a width."""
    return min(largest, (WIDTH - 2 * MARGIN - labels - (columns - 1) * GAP) // columns)


def grid(
    cells: Sequence[Cell],
    *,
    columns: int,
    title: str,
    aside: str = "",
    notes: Sequence[str] = (),
    legend: Legend | None = None,
    key: Sequence[tuple[str, Colour]] = (),
    thumbnail: Tile | None = None,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    label_width: int = 0,
) -> Tile:
    """Draw tiles row by row below a header, uint8 `(H, 1000, 3)`, in a palette where all tiles are.

    Tiles keep their size; a column is as wide as its widest tile. `aside` stands at the right of the title (the
    epoch), `notes` below it, then the `key` of the frames, `thumbnail` at the left of all. `label_width` is kept
    free for `row_labels`.
    """
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    widths = [max(row[c].pixels.shape[1] for row in rows if c < len(row)) for c in range(min(columns, len(cells)))]
    free = WIDTH - 2 * MARGIN - label_width - sum(widths)
    gap = min(free // max(len(widths) - 1, 1), 3 * GAP) if len(rows) > 1 or len(widths) > 1 else GAP
    start = MARGIN + label_width + (free // 2 if len(widths) == 1 else 0)
    lefts = [start + sum(widths[:c]) + c * gap for c in range(len(widths))]
    header = _Header(title=title, aside=aside, notes=notes, legend=legend, thumbnail=thumbnail, key=key)
    top = header.height + (round(1.3 * CAPTION) if column_labels else 0)
    tops, y = [], top
    for row in rows:
        tops.append(y)
        y += max(cell.pixels.shape[0] for cell in row) + _caption_height(row) + GAP
    tiles = [cell.pixels for cell in cells] + ([] if thumbnail is None else [thumbnail])
    in_colour = not all(isinstance(tile, Indexed) for tile in tiles)
    canvas = Canvas(WIDTH, y + MARGIN - GAP, BACKGROUND, in_colour=in_colour)
    header.draw(canvas)
    for label, left, width in zip(column_labels, lefts, widths, strict=False):
        _text(canvas, label, (left, top - round(1.25 * CAPTION)), width=width + gap - 4, size=CAPTION, colour=FAINT)
    sizes = _caption_sizes(rows, widths, gap)
    for i, (row, row_top) in enumerate(zip(rows, tops, strict=True)):
        height = max(cell.pixels.shape[0] for cell in row)
        if i < len(row_labels):
            at = (MARGIN, row_top + (height - CAPTION) // 2)
            _text(canvas, row_labels[i], at, width=label_width - GAP, size=CAPTION, colour=FAINT, anchor="l")
        for cell, left, width in zip(row, lefts, widths, strict=False):
            _draw_cell(canvas, cell, (left, row_top), (width, height), room=width + gap - 8, sizes=sizes)
    canvas.outline(EDGE, (0, 0, WIDTH, canvas.height), width=2)
    return canvas.finished()


@dataclass(frozen=True, kw_only=True)
class _Header:
    """What stands above the tiles."""

    title: str
    aside: str
    notes: Sequence[str]
    legend: Legend | None
    thumbnail: Tile | None
    key: Sequence[tuple[str, Colour]]

    @property
    def height(self) -> int:
        height = self._key_top + (_LINE + GAP if self.key else 0) + 6
        return max(height, MARGIN + self.thumbnail.shape[0] + 2 * GAP) if self.thumbnail is not None else height

    def draw(self, canvas: Canvas) -> None:
        if self.thumbnail is not None:
            canvas.paste(self.thumbnail, (MARGIN, MARGIN))
        room = WIDTH - MARGIN - self._left - (text_width(self.aside, TITLE) + 3 * GAP if self.aside else 0)
        _text(canvas, self.title, (self._left, MARGIN - 6), width=room, size=TITLE, colour=INK, anchor="l")
        _text(canvas, self.aside, (WIDTH - MARGIN, MARGIN - 6), width=WIDTH, size=TITLE, colour=FAINT, anchor="r")
        for i, line in enumerate(self._lines):
            canvas.write(line, (self._left, _UNDER_TITLE + i * _LINE), size=NOTE, bold=False, colour=FAINT)
        if self.legend is not None:
            _draw_legend(canvas, self.legend, _UNDER_TITLE)
        _draw_key(canvas, self.key, (self._left, self._key_top))

    @property
    def _left(self) -> int:
        return MARGIN + (self.thumbnail.shape[1] + 2 * GAP if self.thumbnail is not None else 0)

    @property
    def _key_top(self) -> int:
        return _UNDER_TITLE + max(len(self._lines) * _LINE, _LINE if self.legend else 0) + GAP

    @cached_property
    def _lines(self) -> list[str]:
        bar = _legend_width(self.legend) + 2 * GAP if self.legend else 0
        room = WIDTH - MARGIN - self._left - bar
        return [line for note in self.notes for line in wrap(note, width=room, size=NOTE)]


def _draw_key(canvas: Canvas, key: Sequence[tuple[str, Colour]], at: tuple[int, int]) -> None:
    left, top = at
    words, size = [text for text, _ in key], NOTE
    while (
        size > SMALLEST and sum(text_width(word, size) + size + 4 + 2 * GAP for word in words) > WIDTH - MARGIN - left
    ):
        size -= 1
    for text, colour in key:
        canvas.fill(colour, (left, top + 4, left + size - 3, top + size + 1))
        canvas.write(text, (left + size + 4, top), size=size, colour=colour)
        left += size + 4 + round(text_width(text, size)) + 2 * GAP


def _legend_width(legend: Legend) -> int:
    return round(text_width(legend.low, NOTE) + text_width(legend.high, NOTE)) + 140 + 2 * GAP


def _draw_legend(canvas: Canvas, legend: Legend, top: int) -> None:
    left = WIDTH - MARGIN - _legend_width(legend)
    bar_left = left + round(text_width(legend.low, NOTE)) + GAP
    canvas.write(legend.low, (left, top), size=NOTE, colour=FAINT)
    canvas.write(legend.high, (bar_left + 140 + GAP, top), size=NOTE, colour=FAINT)
    columns = np.linspace(0, len(legend.colours) - 1, 140).round().astype(np.uint8)
    canvas.paste(Indexed(places=np.tile(columns, (26, 1)), palette=legend.colours), (bar_left, top + 6))


def _caption_height(row: Sequence[Cell]) -> int:
    lines = max(len(cell.caption) for cell in row)
    return round(lines * 1.15 * CAPTION) + (4 if lines else 0)


def _caption_sizes(rows: Sequence[Sequence[Cell]], widths: Sequence[int], gap: int) -> tuple[int, int]:
    """One size for all numbers and one for all names, so that a grid looks calm; very long names shrink alone."""
    sizes: dict[bool, list[int]] = {True: [CAPTION], False: [CAPTION]}
    for row in rows:
        for cell, width in zip(row, widths, strict=False):
            for line in cell.caption:
                sizes[_is_number(line)].append(fitting(line, width=width + gap - 8, size=CAPTION)[1])
    return min(sizes[True]), max(min(sizes[False]), NAME)


def _is_number(line: str) -> bool:
    return re.fullmatch(r"[\d.…e%±−]+", line) is not None


def _draw_cell(
    canvas: Canvas,
    cell: Cell,
    at: tuple[int, int],
    box: tuple[int, int],
    *,
    room: int,
    sizes: tuple[int, int],
) -> None:
    height, width = cell.pixels.shape[:2]
    left, top = at[0] + (box[0] - width) // 2, at[1] + (box[1] - height) // 2
    canvas.paste(cell.pixels, (left, top))
    if cell.frame is not None:
        # Mostly around the tile: a small kernel's outer weights are to be seen too.
        edges = (left - OUTSIDE, top - OUTSIDE, left + width + OUTSIDE, top + height + OUTSIDE)
        canvas.outline(cell.frame, edges, width=FRAME)
    if cell.mark:
        _draw_mark(canvas, cell.mark, (left + width, top), cell.frame or INK)
    for i, line in enumerate(cell.caption):
        toned = i >= len(cell.caption) - cell.toned
        colour = cell.frame if toned and cell.frame is not None else INK
        y = at[1] + box[1] + 1 + round(i * 1.15 * CAPTION)
        at_line = (at[0] + (box[0] - room) // 2, y)
        _text(canvas, line, at_line, width=room, size=sizes[not _is_number(line)], colour=colour)


def _draw_mark(canvas: Canvas, mark: str, corner: tuple[int, int], colour: Colour) -> None:
    size = 56
    left, top = corner[0] - size, corner[1]
    canvas.fill(colour, (left, top, left + size, top + size))
    canvas.write(mark, (left + size / 2, top + size / 2), size=50, colour=BACKGROUND, on=colour, anchor="mm")


def _text(
    canvas: Canvas,
    text: str,
    at: tuple[int, int],
    *,
    width: float,
    size: int,
    colour: Colour,
    anchor: str = "m",
) -> None:
    text, fitted = fitting(text, width=width, size=size)
    x = at[0] + width / 2 if anchor == "m" else at[0]
    # One baseline per line, whatever size a single label shrank to.
    canvas.write(text, (x, at[1] + 0.95 * size), size=fitted, colour=colour, anchor=f"{anchor}s")
