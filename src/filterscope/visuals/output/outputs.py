"""The kinds of output of a visual: pictures, tables, arrays, encoded files, sites and numbers."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from filterscope.visuals.drawing.grid import Pixels
from filterscope.visuals.output.site import Site

Row = tuple[str | int | float, ...]
"""One cell per column of a table."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image: `pixels` is uint8 `(H, W, 3)`, `description` explains in Markdown what it shows."""

    pixels: Pixels
    description: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows that are shown, and saved as CSV; each has one cell per column.

    A table with `terminal` summarises the run and is also printed at its end.
    """

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    description: str = ""
    terminal: bool = False


@dataclass(frozen=True, kw_only=True)
class Arrays:
    """Named tensors that are saved as numbers."""

    arrays: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A picture that is encoded already, `{suffix: content}`, such as an animation or a PDF."""

    contents: Mapping[str, bytes]
    description: str = ""


Output = Picture | Table | Arrays | Encoded | Site | float
