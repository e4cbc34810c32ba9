"""Draw the kernels of convolutions."""

from dataclasses import dataclass

from torch import Tensor

from filterscope.analysis.filters import kernels
from filterscope.models.classifier import Classifier
from filterscope.models.layers import convolutions
from filterscope.registry import register
from filterscope.visuals.drawing.grid import Cell, column_count, grid, tile_size
from filterscope.visuals.drawing.tiles import kernel_tiles, signed_legend
from filterscope.visuals.filter_selection import FilterSelection, check_order, select_filters
from filterscope.visuals.filter_words import FilterWords, known_words
from filterscope.visuals.output.outputs import Picture
from filterscope.visuals.visual import ChannelChoice, Examples, LayerChoice, Visual, VisualState, layer_note

_EXPLANATION = {
    "colour": "Every filter is drawn as a small image: mid-grey is a weight of zero, and each filter is scaled by its "
    "own largest weight. Stripes detect edges, blobs detect colours; a filter that looks like coloured noise has "
    "learned nothing.",
    "grey": "Mid-grey is a weight of zero, white positive, black negative; each filter is scaled by its own largest "
    "weight. Smooth light and dark areas detect edges; a chequered jumble detects nothing in particular.",
    "shared": "Such a kernel is a stack of one slice per input channel. Large: the spatial pattern that the slices "
    "have most in common (the first singular vector, after each slice's mean is subtracted). Small, at the right: the "
    "slices of the three inputs with the largest weights, the strongest on top. Red is positive, blue negative, white "
    "zero; pattern and slices are each scaled by their own largest weight.",
    "points": "A 1×1 kernel has no spatial shape, only one weight per input channel. The weights are laid out row by "
    "row in a square: red positive, blue negative, white zero, scaled by the largest weight of the filter.",
}


@register("visual", "filters")
@dataclass(frozen=True, kw_only=True)
class Filters(Visual):
    """Draw the kernels of each convolution, one grid per layer: `filters/<layer>`.

    Attributes:
        layers: names of convolutions; None: all.
        channels: the number of filters, counted from the first, a list of indices, or None for all.
        order: `number`, or `verdict`: a representative sample from useful to dead, framed by verdict; needs the
            health visual.
    """

    layers: LayerChoice = None
    channels: ChannelChoice = 64
    order: str = "number"

    def __post_init__(self) -> None:
        """Raise a `UserError` for an option that is not possible."""
        super().__post_init__()
        check_order(self.order, where="visuals.filters.order")

    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> dict[str, Picture]:
        """Return one picture for every layer that must be drawn."""
        pictures = {}
        for layer in self.layers if self.layers is not None else convolutions(classifier.layers):
            weights, tag = kernels(classifier, layer), f"filters/{layer}"
            selection = select_filters(classifier, layer, self.channels, state, order=self.order)
            note = layer_note(classifier, layer, tag, state, alone=not selection.verdicts)
            if note is not None:
                chosen = weights[selection.channels]
                words = known_words(state, layer)
                pictures[tag] = draw_filters(
                    chosen, selection, layer=layer, total=len(weights), header_note=note, words=words
                )
        return pictures


def draw_filters(
    weights: Tensor,
    selection: FilterSelection,
    *,
    layer: str,
    total: int,
    header_note: str = "",
    words: FilterWords | None = None,
) -> Picture:
    """Draw kernels with their channel numbers.

    Args:
        weights: the kernels `(n, inputs, kh, kw)`.
        selection: which filters of the layer they are.
        layer: its name.
        total: the number of its filters.
        header_note: at the right of the title.
        words: on all filters of the layer, shown as captions and in the description; None: there are none.
    """
    inputs, height, width = weights.shape[1:]
    columns = column_count(len(weights))
    tiles, drawing = kernel_tiles(weights, tile_size(columns))
    count = f"{len(weights)} of {total} filters" if len(weights) < total else f"all {total} filters"
    note = {
        "colour": f"{count}, {height}×{width} in colour; grey = 0, each scaled by its largest weight",
        "grey": f"{count}, {height}×{width}; grey = 0, white +, black −, each scaled by its largest weight",
        "shared": f"{count}, {height}×{width}. Large: the pattern its {inputs} inputs share. Small: the 3 strongest",
        "points": f"{count}, 1×1: its weights for {inputs} inputs, row by row",
    }[drawing]
    pixels = grid(
        [
            Cell(
                pixels=tile,
                caption=(str(channel), *(words.captions[channel] if words else ()), *selection.word(i)),
                frame=selection.frame(i),
            )
            for i, (tile, channel) in enumerate(zip(tiles, selection.channels, strict=True))
        ],
        columns=columns,
        title=layer,
        header_note=header_note,
        notes=[note],
        legend=signed_legend() if drawing in ("shared", "points") else None,
        key=selection.key,
    )
    what = f"{count}, {height}×{width} over {inputs} input channel{'s' * (inputs > 1)}"
    listed = "".join(f"\n- {i}: {words.sentences[i]}" for i in selection.channels) if words else ""
    return Picture(pixels=pixels, description=f"**{layer}**: {what}. {_EXPLANATION[drawing]}\n{listed}".rstrip())
