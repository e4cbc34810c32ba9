"""Each filter beside what it makes of an image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.layers import channels_of, convolutions
from filterscope.probes.filters import kernels
from filterscope.probes.responses import pixel_kernels, raw_responses, true_responses
from filterscope.visuals.draw import Cell, grid, side
from filterscope.visuals.filters import filter_tiles
from filterscope.visuals.tiles import photo, signed, signed_legend
from filterscope.visuals.visual import Examples, Past, Picture, epoch_label, occasion

_HOW = (
    "Each filter stands with two answers to the image in the corner. **pixels**: the kernel laid on the pixels "
    "themselves (correlation with mirrored borders, as `cv2.filter2D`; no stride, no bias){how}. **network**: what the "
    "filter truly puts out in the network, before the ReLU, with normalisation, all inputs, stride, padding and bias. "
    "Red is positive, blue negative, white zero; each map is scaled by itself, full colour being what only one place "
    "in a hundred exceeds."
)
_PATTERN = (
    ". This layer's kernels see feature maps, not pixels, so the pattern that their inputs share most (the large one) "
    "is laid on the image in grey: that shows its shape at work and is not what the network computes"
)


@dataclass(frozen=True, kw_only=True)
class Responses:
    """Draw filters beside what they make of one example: `responses/<layer>`.

    Attributes:
        layers: names of convolutions; None: the first one.
        channels: the first so many filters, a list of indices, or None for all.
        image: which example.
        every: draw every so many epochs, 0: before training only.
    """

    layers: Sequence[str] | None = None
    channels: list[int] | int | None = 12
    image: int = 0
    every: int = 1
    needs_images: ClassVar[bool] = True

    def __call__(self, classifier: Classifier, examples: Examples, past: Past) -> dict[str, Picture]:
        """Return a picture for every layer that has something new to show."""
        if not 0 <= self.image < len(examples):
            raise UserError(f"visuals.responses.image={self.image}: there are {len(examples)} examples")
        image = examples.images[self.image]
        pictures = {}
        for layer in self.layers if self.layers is not None else convolutions(classifier.layers)[:1]:
            tag = f"responses/{layer}"
            kernels(classifier, layer)  # refuses layers that have none
            chosen = channels_of(classifier.layers, layer, self.channels)
            still = occasion(classifier, layer, tag, past)
            if still is not None:
                pictures[tag] = draw_responses(classifier, image, layer, chosen, aside=epoch_label(past), still=still)
        return pictures


def draw_responses(
    classifier: Classifier, image: Tensor, layer: str, channels: list[int], *, aside: str = "", still: str = ""
) -> Picture:
    """Draw kernel, response to the pixels and response in the network of some filters to an image `(C, H, W)`."""
    weights = kernels(classifier, layer)
    own = pixel_kernels(classifier, layer, channels)[1]
    abreast = min(2, len(channels))
    size = side(3 * abreast)
    tiles, _ = filter_tiles(weights[channels], size)
    on_pixels = raw_responses(classifier, image, layer, channels)
    in_network = true_responses(classifier, image, layer, channels)
    cells = []
    for channel, tile, raw, true in zip(channels, tiles, on_pixels, in_network, strict=True):
        cells += [
            Cell(pixels=tile, caption=(str(channel),)),
            Cell(pixels=signed(raw, size, largest=_strong(raw))),
            Cell(pixels=signed(true, size, largest=_strong(true))),
        ]
    count = (
        f"{len(channels)} of {len(weights)} filters" if len(channels) < len(weights) else f"all {len(weights)} filters"
    )
    seen = "its kernel" if own else "its main pattern"
    pixels = grid(
        cells,
        columns=3 * abreast,
        title=layer,
        aside=aside,
        notes=[f"{count}; {seen} on the pixels (as filter2D), and its answer in the network", still],
        legend=signed_legend(),
        thumbnail=photo(image, 150),
        column_labels=["filter", "pixels", "network"] * abreast,
    )
    return Picture(pixels=pixels, description=f"**{layer}**: {count}. " + _HOW.format(how="" if own else _PATTERN))


def _strong(values: Tensor) -> float | None:
    """What one place in a hundred exceeds, so that thin edges are not paled by their single brightest point."""
    strong = float(torch.quantile(values.abs().flatten(), 0.99))
    return strong if strong > 0 else None
