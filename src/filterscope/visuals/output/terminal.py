"""Tables in the terminal."""

import shutil

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as Drawn

from filterscope.visuals.output.outputs import Table


def table_text(table: Table, title: str = "", *, width: int | None = None) -> str:
    """Return a table as lines of text, numbers at the right; None: as wide as the terminal, or 120 columns."""
    drawn = Drawn(title=title, box=SIMPLE_HEAD, title_justify="left")
    for i, column in enumerate(table.columns):
        numeric = all(isinstance(row[i], (int, float)) or row[i] == "" for row in table.rows)
        drawn.add_column(column, justify="right" if numeric else "left")
    for row in table.rows:
        drawn.add_row(*(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row))
    console = Console(width=width or shutil.get_terminal_size((120, 24)).columns, color_system=None)
    with console.capture() as captured:
        console.print(drawn)
        console.print(table.description, highlight=False, markup=False)
    return "\n".join(line.rstrip() for line in captured.get().splitlines() if line.strip())
