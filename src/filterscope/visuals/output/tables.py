"""Tables as CSV, as Markdown for TensorBoard, and as text for the terminal."""

import csv
import io
import shutil

from rich import table
from rich.box import SIMPLE_HEAD
from rich.console import Console

from filterscope.visuals.output.outputs import Table


def table_csv(content: Table) -> str:
    """Return a table as CSV with a header."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(content.columns)
    rows.writerows(content.rows)
    return text.getvalue()


def table_markdown(content: Table, most: int = 60) -> str:
    """Return a table as Markdown: its description and its first `most` rows."""
    lines = [content.description, ""] if content.description else []
    lines += ["| " + " | ".join(content.columns) + " |", "|" + " --- |" * len(content.columns)]
    lines += ["| " + " | ".join(_cell(cell, 4) for cell in row) + " |" for row in content.rows[:most]]
    if len(content.rows) > most:
        lines += ["", f"… and {len(content.rows) - most} more rows in the run folder"]
    return "\n".join(lines)


def table_text(content: Table, title: str = "", *, width: int | None = None) -> str:
    """Return a table as lines of text, numbers right-aligned.

    Args:
        content: the table.
        title: the line above it.
        width: in characters; None: that of the terminal, or 120 where there is none.
    """
    drawn = table.Table(title=title, box=SIMPLE_HEAD, title_justify="left")
    for i, column in enumerate(content.columns):
        numeric = all(isinstance(row[i], (int, float)) or row[i] == "" for row in content.rows)
        # The first column says what a row is about: the others are broken or shortened before it.
        drawn.add_column(column, justify="right" if numeric else "left", no_wrap=i == 0)
    for row in content.rows:
        drawn.add_row(*(_cell(cell, 3) for cell in row))
    console = Console(width=width or shutil.get_terminal_size((120, 24)).columns, color_system=None)
    with console.capture() as captured:
        console.print(drawn)
        console.print(content.description, highlight=False, markup=False)
    return "\n".join(line.rstrip() for line in captured.get().splitlines() if line.strip())


def _cell(cell: str | int | float, digits: int) -> str:
    return f"{cell:.{digits}g}" if isinstance(cell, float) else str(cell)
