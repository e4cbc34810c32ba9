"""The sheet of a layer's synthesized pictures: their channels, how far to trust them, and what stands beside them."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from filterscope.analysis.synthesis import LayerStatistics, Synthesis
from filterscope.visuals.drawing.grid import VERMILION, Cell, grid, shape, side
from filterscope.visuals.drawing.text import named
from filterscope.visuals.drawing.tiles import photo
from filterscope.visuals.filter_selection import FilterSelection
from filterscope.visuals.output.outputs import Picture
from filterscope.visuals.trust import HOW, trust_lines

_LABELS = 110  # pixels for the names of rows


@dataclass(frozen=True, kw_only=True)
class ReferenceColumns:
    """What stands in a channel's row: real crops `(channels, n, C, h, w)`, a picture without training `(channels, …)`.

    None: nothing of the kind.
    """

    crops: Tensor | None = None
    untrained: Tensor | None = None

    @property
    def columns(self) -> list[str]:
        """What the columns show."""
        real = [] if self.crops is None else ["real"] * self.crops.shape[1]
        return real + ([] if self.untrained is None else ["untrained"])

    def cells(self, place: int, size: int) -> list[Cell]:
        """Return the tiles in the row of the channel at a place."""
        images = [] if self.crops is None else list(self.crops[place])
        images += [] if self.untrained is None else [self.untrained[place]]
        return [Cell(pixels=photo(image, size)) for image in images]


def draw_synthesis(
    made: Synthesis,
    picked: FilterSelection,
    *,
    layer: str,
    total: int | None = None,
    names: Sequence[str] = (),
    what: str = "channels",
    faces: int = 1,
    beside: ReferenceColumns | None = None,
    statistics: LayerStatistics | None = None,
    aside: str = "",
    still: str = "",
) -> Picture:
    """Draw synthesized pictures under their channel's number and how far to trust them.

    Args:
        made: `faces` pictures of each channel, one channel after the other.
        picked: the channels.
        layer: its name.
        total: how many channels the layer has.
        names: of all its channels, where they have names.
        what: is drawn.
        faces: pictures of a channel; more than one stand in a row.
        beside: what else stands in that row.
        statistics: of the real images that pictures are compared with.
        aside: stands at the right of the title.
        still: says why it stands still.
    """
    channels = picked.channels
    beside = beside or ReferenceColumns()
    rows = faces + len(beside.columns) > 1
    columns = faces + len(beside.columns) if rows else shape(len(channels), most=4)
    size = side(columns, labels=_LABELS if rows else 0)
    lines = trust_lines(made, [channel for channel in channels for _ in range(faces)], statistics)
    cells = []
    for place, channel in enumerate(channels):
        for face in range(place * faces, (place + 1) * faces):
            name = (names[channel],) if names else () if rows else (str(channel),)
            caption = (*(named(name[0], width=size) if name else ()), *lines[face], *picked.word(place))
            rose = bool(made.rose[face])
            cells.append(
                Cell(
                    pixels=photo(made.images[face], size),
                    caption=caption,
                    toned=1 if picked.verdicts else len(lines[face]),
                    frame=picked.frame(place) or (None if rose else VERMILION),
                )
            )
        cells += beside.cells(place, size)
    share = f"{len(channels)} of {total}" if total and len(channels) < total else f"all {len(channels)}"
    count = f"{share} {what}"
    real = f"{statistics.count} real images" if statistics else ""
    note = f"{count}: what excites each most; " + (
        f"× = times the best of {real}" if real else "not compared with real images"
    )
    drawn = grid(
        cells,
        columns=columns,
        title=layer,
        aside=aside,
        notes=[note, still],
        key=picked.key,
        row_labels=[str(channel) for channel in channels] if rows else (),
        column_labels=["synthesized"] * faces + beside.columns if rows else (),
        label_width=_LABELS if rows else 0,
    )
    return Picture(drawn=drawn, description=f"**{layer}**: {count}. {_how(beside, real)}")


def _how(beside: ReferenceColumns, real: str) -> str:
    said = [
        "Each picture was made by gradient ascent from noise so that it excites one channel as much as it can.",
        HOW,
        f"Compared with {real}." if real else "There were no real images to compare with.",
    ]
    if beside.crops is not None:
        said.append("*real*: the parts of the examples that excite the channel most, as much as it sees of them.")
    if beside.untrained is not None:
        said.append(
            "*untrained*: the same picture of the network with random weights; what looks alike was not learned."
        )
    return " ".join(said)
