"""Each filter beside what it makes of an image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from filterscope.analysis.filters import kernels
from filterscope.analysis.responses import pixel_kernels, raw_responses, true_responses
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.layers import channels_of, convolutions
from filterscope.registry import register
from filterscope.visuals.drawing.grid import Cell, grid, side
from filterscope.visuals.drawing.tiles import photo, signed, signed_legend
from filterscope.visuals.filters import filter_tiles
from filterscope.visuals.output.outputs import Picture
from filterscope.visuals.visual import Examples, Visual, VisualState, epoch_label, redraw_note

ANSWERS = ("pixels", "network")
_HOW = (
    "Each filter stands with its answer to the image in the corner. {answers} Red is positive, blue negative, white "
    "zero; each map is scaled by itself, full colour being what only one place in a hundred exceeds."
)
_HOW_ANSWERED = {
    "pixels": "**pixels**: the kernel laid on the pixels themselves (correlation with mirrored borders, as "
    "`cv2.filter2D`; no stride, no bias){how}.",
    "network": "**network**: what the filter truly puts out in the network, before the ReLU, with normalisation, all "
    "inputs, stride, padding and bias.",
}
_PATTERN = (
    ". This layer's kernels see feature maps, not pixels, so the pattern that their inputs share most (the large one) "
    "is laid on the image in grey: that shows its shape at work and is not what the network computes"
)


@register("visual", "responses")
@dataclass(frozen=True, kw_only=True)
class Responses(Visual):
    """Draw filters beside what they make of one example: `responses/<layer>`.

    Attributes:
        layers: names of convolutions; None: the first one.
        channels: the first so many filters, a list of indices, or None for all.
        answers: `pixels` (the kernel laid on the pixels), `network` (what it truly puts out there), or both.
        image: which example.
        every: draw every so many epochs, 0: before training only.
    """

    layers: Sequence[str] | None = None
    channels: list[int] | int | None = 12
    answers: Sequence[str] = ANSWERS
    image: int = 0
    needs_images: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse a choice that does not exist."""
        if not self.answers or not set(self.answers) <= set(ANSWERS):
            raise UserError(f"visuals.responses.answers={list(self.answers)}; possible are {', '.join(ANSWERS)}")

    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> dict[str, Picture]:
        """Return a picture for every layer that has something new to show."""
        if not 0 <= self.image < len(examples):
            raise UserError(f"visuals.responses.image={self.image}: there are {len(examples)} examples")
        image = examples.images[self.image]
        pictures = {}
        for layer in self.layers if self.layers is not None else convolutions(classifier.layers)[:1]:
            tag = f"responses/{layer}"
            kernels(classifier, layer)  # refuses layers that have none
            chosen = channels_of(classifier.layers, layer, self.channels)
            still = redraw_note(classifier, layer, tag, state)
            if still is not None:
                pictures[tag] = draw_responses(
                    classifier, image, layer, chosen, answers=self.answers, aside=epoch_label(state), still=still
                )
        return pictures


def draw_responses(
    classifier: Classifier,
    image: Tensor,
    layer: str,
    channels: list[int],
    *,
    answers: Sequence[str] = ANSWERS,
    aside: str = "",
    still: str = "",
) -> Picture:
    """Draw the kernels of some filters beside their answers to an image `(C, H, W)`."""
    weights = kernels(classifier, layer)
    own = pixel_kernels(classifier, layer, channels)[1]
    abreast = min(2 if len(answers) > 1 else 4, len(channels))
    size = side((1 + len(answers)) * abreast)
    tiles, _ = filter_tiles(weights[channels], size)
    made = {"pixels": raw_responses, "network": true_responses}
    maps = [made[answer](classifier, image, layer, channels) for answer in answers]
    cells = []
    for channel, tile, *answered in zip(channels, tiles, *maps, strict=True):
        cells.append(Cell(pixels=tile, caption=(str(channel),)))
        cells += [Cell(pixels=signed(values, size, largest=_strong(values))) for values in answered]
    count = (
        f"{len(channels)} of {len(weights)} filters" if len(channels) < len(weights) else f"all {len(weights)} filters"
    )
    seen = {
        "pixels": f"{'its kernel' if own else 'its main pattern'} on the pixels (as filter2D)",
        "network": "its answer in the network",
    }
    drawn = grid(
        cells,
        columns=(1 + len(answers)) * abreast,
        title=layer,
        aside=aside,
        notes=[f"{count}; {', and '.join(seen[answer] for answer in answers)}", still],
        legend=signed_legend(),
        thumbnail=photo(image, 150),
        column_labels=["filter", *answers] * abreast,
    )
    explained = " ".join(_HOW_ANSWERED[answer] for answer in answers).format(how="" if own else _PATTERN)
    return Picture(drawn=drawn, description=f"**{layer}**: {count}. " + _HOW.format(answers=explained))


def _strong(values: Tensor) -> float | None:
    """What one place in a hundred exceeds, so that thin edges are not paled by their single brightest point."""
    strong = float(torch.quantile(values.abs().flatten(), 0.99))
    return strong if strong > 0 else None
