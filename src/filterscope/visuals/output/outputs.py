"""What visuals return: pictures, tables, arrays, encoded files, sites and numbers."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from filterscope.visuals.drawing.pixels import Pixels, Tile, rgb
from filterscope.visuals.output.site import Site


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image to show, `drawn` in colour or in a palette; `description` says in Markdown what one sees."""

    drawn: Tile
    description: str = ""

    @property
    def pixels(self) -> Pixels:
        """The image in colour, uint8 `(H, W, 3)`."""
        return rgb(self.drawn)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows to show and to keep as CSV; every row has one cell per column.

    One that sums a run up is shown in the `terminal` too, when all is done.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str | int | float, ...], ...]
    description: str = ""
    terminal: bool = False


@dataclass(frozen=True, kw_only=True)
class Arrays:
    """Named tensors to keep as numbers."""

    arrays: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A picture that is files already, `{suffix: content}`: one that moves, or that is to be printed."""

    contents: Mapping[str, bytes]
    description: str = ""


Output = Picture | Table | Arrays | Encoded | Site | float
