"""Feature visualizations of the same filters by several recipes, one row each, and the objective in each step."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt

from filterscope.analysis.activations import activations
from filterscope.analysis.synthesis import (
    Job,
    LayerStatistics,
    Recipe,
    SynthesisResult,
    ranks,
    run_synthesis_worker,
    synthesize_all,
)
from filterscope.analysis.synthesis.trust import mean_response, own_responses
from filterscope.models.classifier import Classifier
from filterscope.models.layers import channels_of, convolutions
from filterscope.registry import register
from filterscope.visuals.drawing.grid import VERMILION, Cell, grid, tile_size
from filterscope.visuals.drawing.tiles import photo
from filterscope.visuals.output.outputs import Output, Picture, Table
from filterscope.visuals.progress import progress_bar
from filterscope.visuals.synthesis import Synthesis
from filterscope.visuals.trust import cache_folder, real_statistics, trust_captions
from filterscope.visuals.visual import (
    ChannelChoice,
    Every,
    Examples,
    LayerChoice,
    Visual,
    VisualState,
    epoch_label,
)

log = logging.getLogger(__name__)

_LABEL_WIDTH = 150  # pixels
_DESCRIPTION = (
    "The same filters of **{layer}** by {count} recipes, one row each. Pictures of a recipe that does not bound its "
    "pixels are scaled to fill the range from black to white. The caption says how far to trust a picture **as it is "
    "shown here**, given to the network like any image: **4.0× best of 300**, it activates the filter four times as "
    "strongly as any of 300 real images; **none reacts more**, no other filter of the layer does. {compared}"
)


@register("visual", "comparison")
@dataclass(frozen=True, kw_only=True)
class Comparison(Visual):
    """Visualize the same filters by several recipes: pictures `comparison/<layer>`, tables `objective/<layer>`.

    Attributes:
        recipes: by name; each makes one row.
        layers: names of layers; a number of convolutions that are chosen at random; None: every convolution.
        channels: the number of channels, a list of indices, or None for all.
        pick: with a number of channels: the `first`, or chosen at `random`.
        log_every: number of steps between two values of the objective that are tabulated; 0: no table. They are
            logged, too, with `hydra.verbose=true`.
        cache: folder of finished pictures, which are not made again; used outside training only. None: no cache.
        seed: of the random choice and of the initial noise.
        every: see `Visual`.
    """

    recipes: Annotated[Mapping[str, Recipe], Field(min_length=1)] = field(default_factory=lambda: {"natural": Recipe()})
    layers: LayerChoice | PositiveInt = None
    channels: ChannelChoice = 4
    pick: Literal["first", "random"] = "first"
    log_every: NonNegativeInt = 10
    cache: str | None = None
    seed: int = 0
    every: Every = 0

    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> dict[str, Output]:
        """Return a picture and a table of objectives for every layer."""
        selected = self._select(classifier)
        known = real_statistics(classifier, list(selected), examples, state)
        jobs = [
            Job(layer=layer, channels=tuple(own), recipe=recipe, seed=self.seed, statistics=known)
            for layer, own in selected.items()
            for recipe in self.recipes.values()
        ]
        with progress_bar("comparison", state) as progress:
            made = iter(synthesize_all(classifier, jobs, cache=cache_folder(self.cache, state), progress=progress))
        outputs: dict[str, Output] = {}
        for layer, channels in selected.items():
            results = {name: next(made) for name in self.recipes}
            real = known.layers.get(layer)
            shown = {name: measure_as_shown(classifier, layer, channels, each, real) for name, each in results.items()}
            outputs[f"comparison/{layer}"] = draw_comparison(
                shown, channels, layer=layer, statistics=real, epoch=epoch_label(state)
            )
            if self.log_every:
                table = _objective_table(results, channels, self.log_every, layer)
                outputs[f"objective/{layer}"] = table
                for name, channel, step, value in table.rows:
                    log.debug("%s, %s: step %s: objective of filter %s: %.6f", layer, name, step, channel, value)
        return outputs

    def unsupported_reason(self, classifier: Classifier) -> str:
        """Return the reason if the network does not take the size of a recipe."""
        reasons = (Synthesis(recipe=recipe).unsupported_reason(classifier) for recipe in self.recipes.values())
        return next(filter(None, reasons), "")

    def run_worker(self, classifier: Classifier) -> None:
        """Make this rank's share of the pictures that rank 0 draws."""
        run_synthesis_worker(classifier)

    def _select(self, classifier: Classifier) -> dict[str, list[int]]:
        """Return the channels of each layer."""
        generator = torch.Generator().manual_seed(self.seed)
        names: Sequence[str] = convolutions(classifier.layers)
        if isinstance(self.layers, int):
            names = [names[i] for i in _choose(len(names), self.layers, generator)]
        elif self.layers is not None:
            names = self.layers
        selected = {}
        for name in names:
            total = len(channels_of(classifier.layers, name, None))
            if self.pick == "random" and isinstance(self.channels, int):
                selected[name] = _choose(total, self.channels, generator)
            else:
                selected[name] = channels_of(classifier.layers, name, self.channels)
        return selected


def measure_as_shown(
    classifier: Classifier,
    layer: str,
    channels: Sequence[int],
    result: SynthesisResult,
    statistics: LayerStatistics | None,
) -> SynthesisResult:
    """Return the pictures with responses to them as images in [0, 1], which the network normalizes like real ones."""
    responses = mean_response(activations(classifier, result.images, [layer])[layer])
    own = own_responses(responses, channels)
    return dataclasses.replace(result, responses=responses, activation=own, rank=ranks(responses, channels, statistics))


def draw_comparison(
    results: Mapping[str, SynthesisResult],
    channels: Sequence[int],
    *,
    layer: str,
    statistics: LayerStatistics | None = None,
    epoch: str = "",
) -> Picture:
    """Draw one row of pictures for each recipe, with captions on how far to trust them."""
    size = tile_size(len(channels), labels=_LABEL_WIDTH)
    cells = []
    for result in results.values():
        captions = trust_captions(result, channels, statistics)
        for image, channel, lines, converged in zip(result.images, channels, captions, result.converged, strict=True):
            frame = None if converged else VERMILION
            caption = (f"filter {channel}", *lines)
            cells.append(Cell(pixels=photo(image, size), caption=caption, toned=len(lines), frame=frame))
    compared = (
        f"× = times the best of {statistics.count} real images" if statistics else "not compared with real images"
    )
    drawn = grid(
        cells,
        columns=len(channels),
        title=layer,
        header_note=epoch,
        notes=[f"pictures made to activate each filter, by recipe; {compared}"],
        row_labels=list(results),
        label_width=_LABEL_WIDTH,
    )
    description = _DESCRIPTION.format(layer=layer, count=len(results), compared=f"{compared[0].upper()}{compared[1:]}.")
    return Picture(pixels=drawn, description=description)


def _choose(total: int, count: int, generator: torch.Generator) -> list[int]:
    return sorted(torch.randperm(total, generator=generator)[:count].tolist())


def _objective_table(results: Mapping[str, SynthesisResult], channels: Sequence[int], every: int, layer: str) -> Table:
    rows = [
        (name, channel, step, float(result.curve[step - 1, i]))
        for name, result in results.items()
        for i, channel in enumerate(channels)
        for step in range(every, len(result.curve) + 1, every)
    ]
    description = f"The objectives of **{layer}**, every {every} steps, each in the units of its recipe."
    return Table(columns=("recipe", "filter", "step", "objective"), rows=tuple(rows), description=description)
