"""Draw the feature maps, or the features, that a layer outputs for a few images."""

from collections.abc import Sequence

import torch
from torch import Tensor

from filterscope.errors import UserError
from filterscope.visuals.drawing.grid import GAP, MARGIN, WIDTH, Cell, blank, column_count, grid, tile_size
from filterscope.visuals.drawing.text import caption_lines
from filterscope.visuals.drawing.tiles import (
    bars,
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

_MAX_COLUMNS = 7
_EMPTY = Cell(pixels=blank(1, 1))
_IMAGE = 150  # pixels of an image in the header or beside bars

_EXPLANATION = {
    "map": "Each row is one image, shown at its left; each column is one channel: bright where the channel is strongly "
    "activated. Every map is scaled by itself, from its own minimum to its own maximum, which are printed below it: "
    "compare brightness within a map, and the numbers between maps. A constant map is dark all over.",
    "signed": "Each row is one image, shown at its left; each column is one channel: red where the value is positive, "
    "blue where it is negative, white where it is zero. Every map is scaled by itself, symmetrically around zero; the "
    "value of the full colour is printed below it.",
    "bars": "Each row is one image with one bar per feature: red up for positive values, blue down for negative "
    "ones, around the pale zero line. Every row is scaled by itself; its smallest and largest value are printed below.",
}
_SCALE = {
    "map": "each map scaled by itself, min…max below it",
    "signed": "each map scaled by itself, ± its full colour below it",
    "bars": "each row scaled by itself, min…max below it",
}


def draw_maps(
    images: Tensor,
    maps: Tensor,
    selection: FilterSelection,
    *,
    layer: str,
    total: int,
    names: Sequence[str] = (),
    criterion: str = "",
    columns: int | None = None,
    header_note: str = "",
) -> Picture:
    """Draw images beside the maps of some channels; a single image with several rows of maps is in the header.

    Args:
        images: `(N, C, H, W)` in [0, 1].
        maps: `(N, channels, h, w)`, or the outputs `(N, features)` of a Linear, which are drawn as bars.
        selection: the channels of `maps`.
        layer: the layer's name.
        total: how many channels the layer has.
        names: of the images.
        criterion: by which the channels were chosen, such as "that vary most".
        columns: how many maps a row has; None: all, but at most 7.
        header_note: at the right of the title.

    Raises:
        UserError: the layer outputs neither maps nor features.
    """
    if maps.ndim not in (2, 4):
        raise UserError(f"{layer} outputs {maps.ndim - 1} dimensions an image; only maps and features can be drawn")
    channels = selection.channels
    maps = maps.detach().float().cpu().contiguous()  # maps in one piece are read several times faster
    kind = "bars" if maps.ndim == 2 else "signed" if float(maps.min()) < 0 else "map"
    what = "features" if kind == "bars" else "channels"
    count = f"{len(channels)} of {total} {what}" if len(channels) < total else f"all {total} {what}"
    chosen = f" {criterion}" if criterion and len(channels) < total else ""
    labels = [names[i] if i < len(names) else "" for i in range(len(images))]
    if kind == "bars":
        cells, columns, wrapped, single = _bar_cells(images, maps, labels), 2, True, False
    else:
        columns = min(columns or column_count(len(channels), most=_MAX_COLUMNS), len(channels))
        wrapped = len(channels) > columns
        single = wrapped and len(images) == 1
        cells = _map_cells(images, maps, selection, columns, with_image=not single)
        columns += not single
    pixels = grid(
        cells,
        columns=columns,
        title=layer,
        header_note=header_note,
        notes=[f"{count}{chosen}; {_SCALE[kind]}"],
        legend={"bars": None, "signed": signed_legend(), "map": unsigned_legend()}[kind],
        key=selection.key,
        thumbnail=photo(images[0], _IMAGE) if single else None,
        column_labels=[] if wrapped else ["channel", *(str(channel) for channel in channels)],
    )
    shown = f" Images: {', '.join(labels)}." if any(labels) else ""
    return Picture(pixels=pixels, description=f"**{layer}**: {count}. {_EXPLANATION[kind]}{shown}")


def _map_cells(
    images: Tensor, maps: Tensor, selection: FilterSelection, columns: int, *, with_image: bool
) -> list[Cell]:
    """Return the maps of each image in rows of `columns`; the image itself may precede the first row."""
    size = tile_size(columns + with_image)
    negative = float(maps.min()) < 0
    cells: list[Cell] = []
    for image, row in zip(images, maps, strict=True):
        drawn = []
        tiles = signed_maps(row, size) if negative else unsigned_maps(row, size)
        ends = torch.stack(row.flatten(1).aminmax(dim=1), dim=1)
        for i, (low_high, tile, channel) in enumerate(zip(ends, tiles, selection.channels, strict=True)):
            scale = f"±{short(float(low_high.abs().max()))}" if negative else value_range(low_high)
            caption = (str(channel), scale) if len(selection.channels) > columns else (scale,)
            drawn.append(Cell(pixels=tile, caption=caption, frame=selection.frame(i)))
        for start in range(0, len(drawn), columns):
            if with_image:
                cells.append(_EMPTY if start else Cell(pixels=photo(image, size)))
            part = drawn[start : start + columns]
            cells += [*part, *[_EMPTY] * (columns - len(part))]
    return cells


def _bar_cells(images: Tensor, values: Tensor, labels: Sequence[str]) -> list[Cell]:
    width = WIDTH - 2 * MARGIN - _IMAGE - GAP
    cells = []
    for image, row, label in zip(images, values, labels, strict=True):
        cells += [
            Cell(pixels=photo(image, _IMAGE), caption=caption_lines(label, width=_IMAGE)),
            Cell(pixels=bars(row, width, _IMAGE), caption=(value_range(row),)),
        ]
    return cells
