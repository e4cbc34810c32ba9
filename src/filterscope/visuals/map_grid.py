"""Feature maps and features of single images, drawn side by side."""

from collections.abc import Sequence

import torch
from torch import Tensor

from filterscope.errors import UserError
from filterscope.visuals.drawing.grid import (
    BACKGROUND,
    GAP,
    MARGIN,
    WIDTH,
    Cell,
    grid,
    shape,
    side,
)
from filterscope.visuals.drawing.pixels import Indexed, blank
from filterscope.visuals.drawing.text import named
from filterscope.visuals.drawing.tiles import (
    bars,
    few_colours,
    photo,
    short,
    signed_legend,
    signed_maps,
    unsigned_legend,
    unsigned_maps,
    value_range,
)
from filterscope.visuals.filter_selection import FilterSelection
from filterscope.visuals.output.outputs import Picture

_MOST_MAPS = 7  # of one image in one line
_EMPTY = Cell(pixels=blank(BACKGROUND, 1, 1))

_HOW = {
    "map": "Each row is one image, shown at its left; each column is one channel: bright where the channel answers "
    "strongly. Every map is scaled by itself, from its own minimum to its own maximum, which stand below it: compare "
    "the places inside a map, and the numbers between maps. A map that is dark all over is constant.",
    "signed": "Each row is one image, shown at its left; each column is one channel: red where the value is positive, "
    "blue where it is negative, white where it is zero. Every map is scaled by itself, symmetrically around zero; the "
    "value of its fullest colour stands below it.",
    "bars": "Each row is one image with one bar per feature: red up for positive values, blue down for negative "
    "ones, around the pale zero line. Every row is scaled by itself; its smallest and largest value stand below it.",
}


def draw_maps(
    images: Tensor,
    maps: Tensor,
    picked: FilterSelection,
    *,
    layer: str,
    total: int,
    names: Sequence[str] = (),
    why: str = "",
    abreast: int | None = None,
    aside: str = "",
    still: str = "",
) -> Picture:
    """Draw images `(N, C, H, W)` in [0, 1] beside the maps `(N, channels, h, w)` that they cause.

    The outputs `(N, features)` of a Linear are drawn as bars. `total` is how many channels the layer has, `why` says
    which of them are `picked`, `abreast` how many stand side by side. A single image with several rows of maps stands
    in the header.
    """
    if maps.ndim not in (2, 4):
        raise UserError(f"{layer} puts out {maps.ndim - 1} dimensions an image; only maps and features can be drawn")
    channels = picked.channels
    maps = maps.detach().float().cpu().contiguous()  # a map's numbers side by side, because they are gone through often
    kind = "bars" if maps.ndim == 2 else "signed" if float(maps.min()) < 0 else "map"
    of_all = f"{len(channels)} of {total}" if len(channels) < total else f"all {total}"
    what = "features" if kind == "bars" else "channels"
    note = f"{of_all} {what}{' ' + why if why and len(channels) < total else ''}; "
    note += {
        "bars": "each row scaled by itself, min…max below it",
        "signed": "each map scaled by itself, ± its full colour below it",
        "map": "each map scaled by itself, min…max below it",
    }[kind]
    labels = [names[i] if i < len(names) else "" for i in range(len(images))]
    if kind == "bars":
        cells, columns, wrapped, alone = _bar_cells(images, maps, labels), 2, True, False
    else:
        columns = min(abreast or shape(len(channels), most=_MOST_MAPS), len(channels))
        wrapped = len(channels) > columns
        alone = wrapped and len(images) == 1
        cells = _map_cells(images, maps, picked, columns, beside=not alone)
        columns += not alone
    drawn = grid(
        cells,
        columns=columns,
        title=layer,
        aside=aside,
        notes=[note, still],
        legend={"bars": None, "signed": signed_legend("−", "+"), "map": unsigned_legend()}[kind],
        key=picked.key,
        thumbnail=_photos(images, 150)[0] if alone else None,
        column_labels=[] if wrapped else ["channel", *(str(channel) for channel in channels)],
    )
    seen = f" Images: {', '.join(labels)}." if any(labels) else ""
    return Picture(drawn=drawn, description=f"**{layer}**: {of_all} {what}. {_HOW[kind]}{seen}")


def _map_cells(images: Tensor, maps: Tensor, picked: FilterSelection, columns: int, *, beside: bool) -> list[Cell]:
    """Draw each image's maps in lines of `columns`, with the image itself `beside` the first line."""
    size = side(columns + beside)
    negative = float(maps.min()) < 0
    draw = signed_maps if negative else unsigned_maps
    cells: list[Cell] = []
    shown = _photos(images, size) if beside else [None] * len(images)
    for image, row in zip(shown, maps, strict=True):
        drawn = []
        ends = torch.stack(row.flatten(1).aminmax(dim=1), dim=1)
        for i, (low_high, tile, channel) in enumerate(zip(ends, draw(row, size), picked.channels, strict=True)):
            scale = f"±{short(float(low_high.abs().max()))}" if negative else value_range(low_high)
            caption = (str(channel), scale) if len(picked.channels) > columns else (scale,)
            drawn.append(Cell(pixels=tile, caption=caption, frame=picked.frame(i)))
        for start in range(0, len(drawn), columns):
            if image is not None:
                cells.append(_EMPTY if start else Cell(pixels=image))
            part = drawn[start : start + columns]
            cells += [*part, *[_EMPTY] * (columns - len(part))]
    return cells


def _bar_cells(images: Tensor, values: Tensor, labels: Sequence[str]) -> list[Cell]:
    size = 150
    wide = WIDTH - 2 * MARGIN - size - GAP
    cells = []
    for image, row, label in zip(_photos(images, size), values, labels, strict=True):
        cells += [
            Cell(pixels=image, caption=named(label, width=size)),
            Cell(pixels=bars(row, wide, size), caption=(value_range(row),)),
        ]
    return cells


def _photos(images: Tensor, size: int) -> list[Indexed]:
    return few_colours([photo(image, size) for image in images])
