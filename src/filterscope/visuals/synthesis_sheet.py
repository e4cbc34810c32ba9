"""The grid of a layer's feature visualizations with captions on how far to trust them, and reference columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from filterscope.analysis.synthesis import LayerStatistics, SynthesisResult
from filterscope.visuals.drawing.grid import VERMILION, Cell, column_count, grid, tile_size
from filterscope.visuals.drawing.text import caption_lines
from filterscope.visuals.drawing.tiles import photo
from filterscope.visuals.filter_selection import FilterSelection
from filterscope.visuals.output.outputs import Picture
from filterscope.visuals.trust import CAPTION_HELP, is_trusted, trust_captions

REAL_PATCH = "best real patch"
_LABEL_WIDTH = 110  # pixels


@dataclass(frozen=True, kw_only=True)
class ReferenceColumns:
    """Images in a channel's row to compare its pictures with; None: no such columns.

    Attributes:
        patches: top-activating patches of real images, `(channels, n, C, h, w)`.
        untrained: pictures of the network with random weights, `(channels, C, h, w)`.
    """

    patches: Tensor | None = None
    untrained: Tensor | None = None

    @property
    def labels(self) -> list[str]:
        """The label of each column."""
        real = [] if self.patches is None else ["real"] * self.patches.shape[1]
        return real + ([] if self.untrained is None else ["untrained"])

    def cells(self, row: int, size: int) -> list[Cell]:
        """Return the tiles in a row."""
        images = [] if self.patches is None else list(self.patches[row])
        images += [] if self.untrained is None else [self.untrained[row]]
        return [Cell(pixels=photo(image, size)) for image in images]


def draw_synthesis(
    result: SynthesisResult,
    selected: FilterSelection,
    *,
    layer: str,
    total: int | None = None,
    names: Sequence[str] = (),
    what: str = "channels",
    samples: int = 1,
    references: ReferenceColumns | None = None,
    replacements: Mapping[int, Tensor] | None = None,
    statistics: LayerStatistics | None = None,
    header_note: str = "",
) -> Picture:
    """Draw pictures with their channel and how far to trust them; several samples or references make one row a channel.

    Args:
        result: `samples` pictures of each channel, one channel after the other.
        selected: the channels.
        layer: its name.
        total: number of channels of the layer.
        names: of all its channels, where they have names.
        what: what is visualized, in the plural.
        samples: number of pictures of a channel.
        references: columns to compare with.
        replacements: real patches for pictures that say less, by the index of the picture. Of a channel with one
            picture and no real patches of its own, they replace the picture if it activates the channel less.
        statistics: of the real images that pictures are compared with.
        header_note: text at the right of the title.
    """
    channels = selected.channels
    references = references or ReferenceColumns()
    columns = samples + len(references.labels)
    rows = columns > 1
    columns = columns if rows else column_count(len(channels), most=4)
    size = tile_size(columns, labels=_LABEL_WIDTH if rows else 0)
    repeated = [channel for channel in channels for _ in range(samples)]
    replaced: dict[int, Tensor] = {}
    # Several pictures of a channel, or real patches in its row, are compared by eye.
    if statistics is not None and samples == 1 and references.patches is None:
        multiples = statistics.multiple(result.activation, repeated)
        replaced = {i: patch for i, patch in (replacements or {}).items() if multiples[i] < 1}
    captions = trust_captions(result, repeated, statistics)
    cells = []
    for row, channel in enumerate(channels):
        for index in range(row * samples, (row + 1) * samples):
            name = (names[channel],) if names else () if rows else (str(channel),)
            lines, image = captions[index], result.images[index]
            if index in replaced:
                lines, image = (REAL_PATCH, f"picture: {lines[0].partition(' of ')[0]}"), replaced[index]
            caption = (*(caption_lines(name[0], width=size) if name else ()), *lines, *selected.word(row))
            cells.append(
                Cell(
                    pixels=photo(image, size),
                    caption=caption,
                    toned=1 if selected.verdicts else len(lines),
                    frame=selected.frame(row) or (None if is_trusted(result, index) else VERMILION),
                )
            )
        cells += references.cells(row, size)
    share = f"{len(channels)} of {total}" if total and len(channels) < total else f"all {len(channels)}"
    count = f"{share} {what}"
    real = f"{statistics.count} real images" if statistics else ""
    compared = _compared(result, repeated, statistics) if statistics else "not compared with real images"
    drawn = grid(
        cells,
        columns=columns,
        title=layer,
        header_note=header_note,
        notes=[f"{count}: made to activate each; {compared}"],
        key=selected.key,
        row_labels=[str(channel) for channel in channels] if rows else (),
        column_labels=["synthesized"] * samples + references.labels if rows else (),
        label_width=_LABEL_WIDTH if rows else 0,
    )
    return Picture(pixels=drawn, description=f"**{layer}**: {count}. {_description(references, real, bool(replaced))}")


def _compared(result: SynthesisResult, channels: Sequence[int], statistics: LayerStatistics) -> str:
    """Say how many pictures activate their channels at least as strongly as any real image."""
    more = int((statistics.multiple(result.activation, channels) >= 1).sum())
    share = "all" if more == len(channels) else f"{more} of {len(channels)}"
    return f"{share} at least as strongly as any of {statistics.count} real images"


def _description(references: ReferenceColumns, real: str, replaced: bool) -> str:
    sentences = [
        "Each picture was optimized from noise by gradient ascent to activate one channel as much as possible.",
        CAPTION_HELP,
        f"Compared with {real}." if real else "There were no real images to compare with.",
    ]
    if replaced:
        sentences.append(
            f"*{REAL_PATCH}*: the patch of the examples that activates the filter most, in place of a picture that "
            "activates it less than a real image does."
        )
    if references.patches is not None:
        sentences.append(
            "*real*: the top-activating patches of the examples, as large as the channel's receptive field."
        )
    if references.untrained is not None:
        sentences.append(
            "*untrained*: the same picture of the network with random weights; what looks alike was not learned."
        )
    return " ".join(sentences)
