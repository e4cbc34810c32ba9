"""Accentuation: the real image that activates a filter most, and what in it grows to activate it more."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from filterscope.analysis.synthesis import (
    Job,
    Recipe,
    SynthesisResult,
    run_synthesis_worker,
    start_from,
    synthesize_all,
)
from filterscope.analysis.synthesis.trust import ActivationStatistics, LayerStatistics
from filterscope.analysis.top_patches import TopResponses, measure_responses, patch_place, receptive_field
from filterscope.models.classifier import Classifier
from filterscope.models.layers import channels_of, find_layer
from filterscope.registry import register
from filterscope.visuals.drawing.grid import VERMILION, Cell, grid, tile_size
from filterscope.visuals.drawing.tiles import boxed, photo
from filterscope.visuals.filter_selection import convolution_names
from filterscope.visuals.output.outputs import Picture
from filterscope.visuals.progress import progress_bar
from filterscope.visuals.trust import CAPTION_HELP, is_trusted, real_statistics, trust_captions
from filterscope.visuals.visual import (
    ChannelChoice,
    Every,
    Examples,
    LayerChoice,
    Visual,
    VisualState,
    epoch_label,
)

_LABEL_WIDTH = 110  # pixels
_COLUMNS = ("real", "accentuated", "what grew")
_DESCRIPTION = (
    "**{layer}**: for each filter the real image that activates it most, with a frame around the part to which it "
    "reacts most strongly; the same image after a short gradient ascent that activates the filter more; and what grew: "
    "the accentuated image where it changed, grey elsewhere."
)


@dataclass(frozen=True, kw_only=True)
class Accentuated:
    """Real images and their accentuated versions, one for each channel of a layer.

    Attributes:
        images: `(N, C, H, H)` in [0, 1].
        places: the part of each image to which the channel reacts most strongly: its top, left and side, in pixels.
        result: of the optimization that started from the images.
    """

    images: Tensor
    places: list[tuple[int, int, int]]
    result: SynthesisResult

    @property
    def change(self) -> Tensor:
        """The local strength of the change, smoothed, 0 to 1 for each image, `(N, 1, H, H)`."""
        change = (self.result.images - self.images).abs().mean(dim=1, keepdim=True)
        smooth = F.avg_pool2d(change, 7, stride=1, padding=3, count_include_pad=False)
        strongest = torch.quantile(smooth.flatten(1), 0.95, dim=1).clamp_min(1e-6)
        return (smooth / strongest[:, None, None, None]).clamp(max=1)

    @property
    def grown(self) -> Tensor:
        """The accentuated images where they changed, grey elsewhere, `(N, C, H, H)`."""
        return self.change * self.result.images + (1 - self.change) * 0.5


def accentuate(
    classifier: Classifier,
    layer: str,
    channels: Sequence[int],
    images: Tensor,
    *,
    top: TopResponses,
    recipe: Recipe,
    statistics: ActivationStatistics,
    seed: int = 0,
) -> Accentuated:
    """Accentuate for each channel the real image that activates it most.

    Args:
        classifier: is left as it was.
        layer: its name.
        channels: indices.
        images: real images, `(M, C, H, H)` in [0, 1].
        top: the layer's responses to them.
        recipe: of the optimization; its size is replaced by that of the images.
        statistics: of real images.
        seed: of the random transforms.
    """
    sources = top.responses[:, list(channels)].argmax(dim=0).tolist()
    best = images[sources].cpu()
    field_of_view = receptive_field(classifier, layer, images.shape[-1])
    places = [
        patch_place(int(top.positions[i, c]), width=top.width, field=field_of_view, size=images.shape[-1])
        for i, c in zip(sources, channels, strict=True)
    ]
    recipe = dataclasses.replace(recipe, size=images.shape[-1], crop=None, fade=False)
    name = find_layer(classifier.layers, layer).name
    start = start_from(best, recipe)
    job = Job(layer=name, channels=tuple(channels), recipe=recipe, seed=seed, start=start, statistics=statistics)
    return Accentuated(images=best, places=places, result=synthesize_all(classifier, [job])[0])


@register("visual", "accentuation")
@dataclass(frozen=True, kw_only=True)
class Accentuation(Visual):
    """Draw what has to grow in a real image to activate each filter more: `accentuation/<layer>`.

    Attributes:
        recipe: of the optimization; its size is not used.
        layers: names of convolutions; None: all.
        channels: the number of channels, a list of indices, or None for all.
        steps: number of optimization steps, few, so that the image stays recognizable.
        learning_rate: of these steps.
        images: number of real images; of these the one that activates a filter most is used.
        seed: of the random transforms.
        every: see `Visual`.
    """

    needs_images: ClassVar[bool] = True
    needs_convolutions: ClassVar[bool] = True

    recipe: Recipe = field(default_factory=Recipe)
    layers: LayerChoice = None
    channels: ChannelChoice = 4
    steps: PositiveInt = 64
    learning_rate: PositiveFloat = 0.1
    images: PositiveInt = 300
    seed: int = 0
    every: Every = 0

    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> dict[str, Picture]:
        """Return a picture of every layer."""
        examples = examples.sample(self.images)
        names = convolution_names(classifier, self.layers)
        known = real_statistics(classifier, names, examples, state)
        recipe = dataclasses.replace(self.recipe, steps=self.steps, learning_rate=self.learning_rate)
        top = measure_responses(classifier, examples.images, names)
        pictures = {}
        with progress_bar("accentuation", state) as progress:
            for done, layer in enumerate(names):
                channels = channels_of(classifier.layers, layer, self.channels)
                made = accentuate(
                    classifier,
                    layer,
                    channels,
                    examples.images,
                    top=top[layer],
                    recipe=recipe,
                    statistics=known,
                    seed=self.seed,
                )
                pictures[f"accentuation/{layer}"] = _draw(made, channels, layer, known.of(layer), epoch_label(state))
                if progress is not None:
                    progress(layer, (done + 1) / len(names))
        return pictures

    def run_worker(self, classifier: Classifier) -> None:
        """Make this rank's share of the pictures that rank 0 draws."""
        for _ in convolution_names(classifier, self.layers):
            run_synthesis_worker(classifier)


def _draw(made: Accentuated, channels: list[int], layer: str, known: LayerStatistics, note: str) -> Picture:
    size = tile_size(len(_COLUMNS), labels=_LABEL_WIDTH)
    captions = trust_captions(made.result, channels, known)
    cells = []
    for row in range(len(channels)):
        frame = None if is_trusted(made.result, row) else VERMILION
        cells += [
            Cell(pixels=boxed(photo(made.images[row], size), made.places[row], made.images.shape[-1])),
            Cell(
                pixels=photo(made.result.images[row], size),
                caption=captions[row],
                toned=len(captions[row]),
                frame=frame,
            ),
            Cell(pixels=photo(made.grown[row], size)),
        ]
    drawn = grid(
        cells,
        columns=len(_COLUMNS),
        title=layer,
        header_note=note,
        notes=[f"real image, accentuated for each of {len(channels)} filters, and what grew"],
        row_labels=[str(channel) for channel in channels],
        column_labels=list(_COLUMNS),
        label_width=_LABEL_WIDTH,
    )
    return Picture(pixels=drawn, description=f"{_DESCRIPTION.format(layer=layer)} {CAPTION_HELP}")
