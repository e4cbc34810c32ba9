"""Draw filters beside their responses to an image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor

from filterscope.analysis.filters import kernels
from filterscope.analysis.responses import pixel_kernels, raw_responses, true_responses
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.layers import channels_of, convolutions
from filterscope.registry import register
from filterscope.visuals.drawing.grid import Cell, grid, tile_size
from filterscope.visuals.drawing.tiles import kernel_tiles, photo, signed, signed_legend
from filterscope.visuals.output.outputs import Picture
from filterscope.visuals.visual import ChannelChoice, Examples, LayerChoice, Visual, VisualState, layer_note

Answer = Literal["pixels", "network"]
_EXPLANATION = (
    "Each filter is followed by its response to the image in the corner. {answers} Red is positive, blue negative, "
    "white zero; each map is scaled by itself: only 1 % of its positions exceed the value of the full colour."
)
_ANSWERS = {
    "pixels": "**pixels**: the kernel applied to the pixels themselves (correlation with mirrored borders, as "
    "`cv2.filter2D`; no stride, no bias){pattern}.",
    "network": "**network**: the actual output of the filter in the network, before the ReLU, with normalisation, all "
    "input channels, stride, padding and bias.",
}
_PATTERN = (
    ". This layer's kernels process feature maps, not pixels, so the pattern that their inputs share most (the large "
    "one) is applied to the image in grey: this shows what the pattern detects, not what the network computes"
)


@register("visual", "responses")
@dataclass(frozen=True, kw_only=True)
class Responses(Visual):
    """Draw filters beside their responses to one example: `responses/<layer>`.

    Attributes:
        layers: names of convolutions; None: the first one.
        channels: the number of filters, counted from the first, a list of indices, or None for all.
        answers: `pixels` (the kernel applied to the pixels), `network` (the filter's output in the network), or both.
        image: the number of the example.
    """

    layers: LayerChoice = None
    channels: ChannelChoice = 12
    answers: Annotated[Sequence[Answer], Field(min_length=1)] = ("pixels", "network")
    image: NonNegativeInt = 0
    needs_images: ClassVar[bool] = True

    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> dict[str, Picture]:
        """Return one picture for every layer that must be drawn."""
        if self.image >= len(examples):
            raise UserError(f"visuals.responses.image={self.image}: there are {len(examples)} examples")
        image, pictures = examples.images[self.image], {}
        for layer in self.layers if self.layers is not None else convolutions(classifier.layers)[:1]:
            tag = f"responses/{layer}"
            kernels(classifier, layer)  # raises for layers without kernels
            channels = channels_of(classifier.layers, layer, self.channels)
            note = layer_note(classifier, layer, tag, state)
            if note is not None:
                pictures[tag] = draw_responses(
                    classifier, image, layer, channels, answers=self.answers, header_note=note
                )
        return pictures


def draw_responses(
    classifier: Classifier,
    image: Tensor,
    layer: str,
    channels: list[int],
    *,
    answers: Sequence[Answer] = ("pixels", "network"),
    header_note: str = "",
) -> Picture:
    """Draw the kernels of some filters, each followed by its responses to an image `(C, H, W)`."""
    weights = kernels(classifier, layer)
    own_kernels = pixel_kernels(classifier, layer, channels)[1]
    groups = min(2 if len(answers) > 1 else 4, len(channels))
    columns = groups * (1 + len(answers))
    size = tile_size(columns)
    compute = {"pixels": raw_responses, "network": true_responses}
    maps = [compute[answer](classifier, image, layer, channels) for answer in answers]
    cells = []
    for channel, tile, *responses in zip(channels, kernel_tiles(weights[channels], size)[0], *maps, strict=True):
        cells.append(Cell(pixels=tile, caption=(str(channel),)))
        cells += [Cell(pixels=signed(values, size, largest=_full_colour(values))) for values in responses]
    total = len(weights)
    count = f"{len(channels)} of {total} filters" if len(channels) < total else f"all {total} filters"
    what = {
        "pixels": f"{'its kernel' if own_kernels else 'its main pattern'} applied to the pixels (as filter2D)",
        "network": "its output in the network",
    }
    pixels = grid(
        cells,
        columns=columns,
        title=layer,
        header_note=header_note,
        notes=[f"{count}; {', and '.join(what[answer] for answer in answers)}"],
        legend=signed_legend(),
        thumbnail=photo(image, 150),
        column_labels=["filter", *answers] * groups,
    )
    explained = " ".join(_ANSWERS[answer] for answer in answers).format(pattern="" if own_kernels else _PATTERN)
    return Picture(pixels=pixels, description=f"**{layer}**: {count}. " + _EXPLANATION.format(answers=explained))


def _full_colour(values: Tensor) -> float | None:
    """Return the 99th percentile of the absolute values, or a single bright point would make thin edges pale."""
    strong = float(torch.quantile(values.abs().flatten(), 0.99))
    return strong if strong > 0 else None
