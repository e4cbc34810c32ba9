"""Pictures of directions in channel space: what excites several channels of a layer together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from filterscope.analysis.synthesis import Job, Recipe, measure_statistics, run_synthesis_worker, synthesize_all
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.layers import channels_of, convolutions, find_layer
from filterscope.registry import register
from filterscope.visuals.filter_selection import FilterSelection
from filterscope.visuals.output.outputs import Picture
from filterscope.visuals.progress import progress_bar
from filterscope.visuals.synthesis_sheet import draw_synthesis
from filterscope.visuals.visual import Every, Examples, Visual, VisualState, epoch_label


@register("visual", "directions")
@dataclass(frozen=True, kw_only=True)
class Directions(Visual):
    """Draw pictures of directions in a layer's channel space: `directions/<layer>`.

    Attributes:
        layer: name of the layer; None: the last convolution.
        directions: each the weights of some channels, `{3: 1.0, 17: -0.5}`.
        recipe: how pictures are made; `channel` and `specific` both mean the mean along the direction.
        keep: folder in which finished pictures are kept, so that none is made twice; outside training only.
        seed: of the noise that pictures start from.
        every: draw every so many epochs, 0: before training only.
    """

    directions: Sequence[Mapping[int, float]]
    layer: str | None = None
    recipe: Recipe = field(default_factory=Recipe)
    keep: str | None = None
    seed: int = 0
    every: Every = 0

    def __post_init__(self) -> None:
        """Refuse directions that lead nowhere."""
        if not self.directions or not all(any(weights.values()) for weights in self.directions):
            raise UserError(
                f"visuals.directions.directions={list(map(dict, self.directions))}; "
                "it must be a list of channels' weights that are not all 0, [{3: 1.0, 17: -0.5}]"
            )

    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> dict[str, Picture]:
        """Return one picture of all directions."""
        layer = find_layer(classifier.layers, self.layer or convolutions(classifier.layers)[-1])
        directions = self._tensor(classifier, layer.name)
        known = None
        if len(examples):
            measured = measure_statistics(classifier, examples.images, [layer.name], directions=directions)
            known = measured.of(layer.name)
        channels = list(range(len(directions)))
        job = Job(
            layer=layer.name,
            channels=tuple(channels),
            recipe=self.recipe,
            seed=self.seed,
            statistics=known,
            directions=directions,
        )
        keep = Path(self.keep).expanduser() if self.keep and state.epoch is None else None
        with progress_bar("directions", state) as progress:
            (made,) = synthesize_all(classifier, [job], keep=keep, progress=progress)
        picture = draw_synthesis(
            made,
            FilterSelection(channels=channels),
            layer=layer.name,
            names=[_name(weights) for weights in self.directions],
            what="directions",
            statistics=known,
            aside=epoch_label(state),
        )
        return {f"directions/{layer.name}": picture}

    def run_worker(self, classifier: Classifier) -> None:
        """Make this process's share of the pictures that the first process draws."""
        run_synthesis_worker(classifier)

    def _tensor(self, classifier: Classifier, layer: str) -> Tensor:
        total = len(channels_of(classifier.layers, layer, None))
        tensor = torch.zeros(len(self.directions), total)
        for row, weights in zip(tensor, self.directions, strict=True):
            for channel in channels_of(classifier.layers, layer, list(weights)):
                row[channel] = weights[channel]
        return tensor


def _name(weights: Mapping[int, float]) -> str:
    """Return what a direction is called: its channels, with their weights where these are not 1."""
    terms = (f"{'+' if weight > 0 else '−'}{'' if abs(weight) == 1 else f'{abs(weight):g}·'}{channel}"
             for channel, weight in weights.items() if weight)  # fmt: skip
    return " ".join(terms).removeprefix("+")
