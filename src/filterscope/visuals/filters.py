"""Kernels of convolutions as pictures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from filterscope.analysis.filters import kernels, shared_patterns, strongest_inputs
from filterscope.models.classifier import Classifier
from filterscope.models.layers import convolutions
from filterscope.registry import register
from filterscope.visuals.drawing.grid import Cell, grid, shape, side
from filterscope.visuals.drawing.pixels import Tile
from filterscope.visuals.drawing.tiles import kernel, side_by_side, signed_legend, signed_maps
from filterscope.visuals.filter_selection import FilterSelection, check_order, select_filters
from filterscope.visuals.output.outputs import Picture
from filterscope.visuals.visual import Examples, Visual, VisualState, epoch_label, redraw_note

_HOW = {
    "colour": "Every filter is a small image: mid-grey is a weight of zero, and each is scaled by its own largest "
    "weight. Stripes look for edges, blobs for colours; a filter that looks like coloured noise has learned nothing.",
    "grey": "Mid-grey is a weight of zero, white positive, black negative; each filter is scaled by its own largest "
    "weight. Smooth light and dark areas look for edges, a chequered jumble for nothing in particular.",
    "shared": "Such a kernel is a stack of one slice for each input channel. Large: the spatial pattern that the "
    "slices share most (first singular vector, each slice's mean taken off). Small, at the right: the "
    "slices of the three inputs with the largest weights, the strongest on top. Red is positive, blue negative, white "
    "zero; pattern and slices are each scaled by their own largest weight.",
    "points": "A 1×1 kernel has no shape, only one weight per input channel: these are laid out row by row in a "
    "square, red positive, blue negative, white zero, scaled by the largest weight of the filter.",
}


@register("visual", "filters")
@dataclass(frozen=True, kw_only=True)
class Filters(Visual):
    """Draw the kernels of each convolution, one grid per layer: `filters/<layer>`.

    Attributes:
        layers: names of convolutions; None: all.
        channels: the first so many filters, a list of indices, or None for all.
        order: `number`, or `verdict`: a fair sample from useful to dead, framed; needs the health visual.
        every: draw every so many epochs, 0: before training only.
    """

    layers: Sequence[str] | None = None
    channels: list[int] | int | None = 64
    order: str = "number"

    def __post_init__(self) -> None:
        """Refuse an order that does not exist."""
        check_order(self.order, where="visuals.filters.order")

    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> dict[str, Picture]:
        """Return a picture of the kernels of every layer that has something new to show."""
        del examples
        pictures = {}
        for layer in self.layers if self.layers is not None else convolutions(classifier.layers):
            weights = kernels(classifier, layer)
            picked = select_filters(classifier, layer, self.channels, state, order=self.order)
            still = redraw_note(classifier, layer, f"filters/{layer}", state, alone=True, extra=picked.digest)
            if still is not None:
                pictures[f"filters/{layer}"] = draw_filters(
                    weights[picked.channels],
                    picked,
                    layer=layer,
                    total=len(weights),
                    aside=epoch_label(state),
                    still=still,
                )
        return pictures


def draw_filters(
    weights: Tensor, picked: FilterSelection, *, layer: str, total: int, aside: str = "", still: str = ""
) -> Picture:
    """Draw kernels `(n, inputs, kh, kw)` under their channel numbers; `total` is how many the layer has."""
    inputs, height, width = weights.shape[1:]
    columns = shape(len(weights))
    tiles, kind = filter_tiles(weights, side(columns))
    of_all = f"{len(weights)} of {total} filters" if len(weights) < total else f"all {total} filters"
    note = {
        "colour": f"{of_all}, {height}×{width} in colour; grey = 0, each scaled by its largest weight",
        "grey": f"{of_all}, {height}×{width}; grey = 0, white +, black −, each scaled by its largest weight",
        "shared": f"{of_all}, {height}×{width}. Large: the shape its {inputs} inputs share. Small: the 3 strongest",
        "points": f"{of_all}, 1×1: its weights of {inputs} inputs, row by row",
    }[kind]
    drawn = grid(
        [
            Cell(pixels=tile, caption=(str(channel), *picked.word(i)), frame=picked.frame(i))
            for i, (tile, channel) in enumerate(zip(tiles, picked.channels, strict=True))
        ],
        columns=columns,
        title=layer,
        aside=aside,
        notes=[note, still],
        legend=signed_legend() if kind in ("shared", "points") else None,
        key=picked.key,
    )
    about = f"**{layer}**: {of_all}, {height}×{width} over {inputs} input channel{'s' * (inputs > 1)}. {_HOW[kind]}"
    return Picture(drawn=drawn, description=about)


def filter_tiles(weights: Tensor, size: int) -> tuple[list[Tile], str]:
    """Return a tile per kernel and which way of drawing was taken.

    The ways are `colour` (three inputs), `grey` (one), `shared` (more) and `points` (1×1 kernels of more).
    """
    inputs, height, width = weights.shape[1:]
    if inputs in (1, 3):
        return [kernel(w, size) for w in weights], "colour" if inputs == 3 else "grey"
    if height * width == 1:
        edge = math.ceil(math.sqrt(inputs))
        padded = torch.nn.functional.pad(weights.flatten(1), (0, edge * edge - inputs))
        return list(signed_maps(padded.reshape(-1, edge, edge), size)), "points"
    patterns, _ = shared_patterns(weights)
    strongest = torch.stack([w[top] for w, top in zip(weights, strongest_inputs(weights, 3), strict=True)])
    largest = strongest.abs().amax((1, 2, 3)).repeat_interleave(strongest.shape[1])
    small = signed_maps(strongest.flatten(0, 1), size // 4 - 2, largest=largest)
    tiles, each = signed_maps(patterns, size - size // 4 - 2), strongest.shape[1]
    return [side_by_side(tiles[i], small[i * each : (i + 1) * each]) for i in range(len(tiles))], "shared"
