"""Tables as CSV, as Markdown for TensorBoard, and as text for the terminal."""

import csv
import io
import math
import shutil
from collections.abc import Sequence

from rich import table
from rich.box import SIMPLE_HEAD
from rich.console import Console

from filterscope.visuals.output.outputs import Table

MOST_ROWS = 60  # of a table in Markdown


def table_csv(content: Table) -> str:
    """Return a table as CSV with a header."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(content.columns)
    rows.writerows(content.rows)
    return text.getvalue()


def table_markdown(content: Table) -> str:
    """Return a table as Markdown: its description and its first `MOST_ROWS` rows."""
    lines = [content.description, ""] if content.description else []
    lines += ["| " + " | ".join(content.columns) + " |", "|" + " --- |" * len(content.columns)]
    rows = ([_cell(cell, 4).replace("|", "\\|") for cell in row] for row in content.rows[:MOST_ROWS])
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    if len(content.rows) > MOST_ROWS:
        lines += ["", f"… and {len(content.rows) - MOST_ROWS} more rows in the run folder"]
    return "\n".join(lines)


def table_text(content: Table, title: str = "", *, width: int | None = None) -> str:
    """Return a table as lines of text, numbers right-aligned; one that is too wide in parts below each other.

    Args:
        content: the table.
        title: the line above it.
        width: in characters; None: that of the terminal, or 120 where there is none.
    """
    width = width or shutil.get_terminal_size((120, 24)).columns
    cells = [[_cell(cell, 3) for cell in column] for column in zip(content.columns, *content.rows, strict=True)]
    widths = [max(map(len, column)) for column in cells]
    if _width(range(len(widths)), widths) > width:  # then the blanks of the columns' names become line breaks
        widths = [max(map(len, (*name.split(), *column))) for name, *column in cells]
    longest, widths[0] = widths[0], min(widths[0], max(width // 2, width - sum(widths[1:]) - 3 * len(widths) - 1))
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        for part in _parts(widths, width):
            drawn = table.Table(title=title, box=SIMPLE_HEAD, title_justify="left")
            fits = len(part) > 2 or _width(part, widths) <= width
            for i in part:
                numeric = all(isinstance(row[i], (int, float)) or row[i] == "" for row in content.rows)
                # The first column says what a row is about: the others are broken or shortened before it.
                drawn.add_column(
                    cells[i][0],
                    justify="right" if numeric else "left",
                    no_wrap=i == 0 and widths[0] == longest,
                    overflow="fold",
                    width=widths[i] if fits else None,
                )
            for row in zip(*(cells[i][1:] for i in part), strict=True):
                drawn.add_row(*row)
            console.print(drawn)
            title = ""
        console.print(content.description, highlight=False, markup=False)
    return "\n".join(line.rstrip() for line in captured.get().splitlines() if line.strip())


def _parts(widths: Sequence[int], most: int) -> list[list[int]]:
    """Return the columns of each part of a table that is too wide; each part begins with the first column."""
    parts = [[0]]
    for i in range(1, len(widths)):
        if len(parts[-1]) > 1 and _width([*parts[-1], i], widths) > most:
            parts.append([0])
        parts[-1].append(i)
    return parts


def _width(part: Sequence[int], widths: Sequence[int]) -> int:
    return sum(widths[i] + 3 for i in part) + 1  # with the blanks around each column


def _cell(cell: str | int | float, digits: int) -> str:
    if not isinstance(cell, float):
        return str(cell)
    return "–" if math.isnan(cell) else f"{cell:.{digits}g}"
