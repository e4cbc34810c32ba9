"""Feature visualizations of directions in channel space, which activate several channels of a layer together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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
from filterscope.visuals.trust import cache_folder
from filterscope.visuals.visual import Every, Examples, Visual, VisualState, epoch_label


@register("visual", "directions")
@dataclass(frozen=True, kw_only=True)
class Directions(Visual):
    """Draw pictures of directions in a layer's channel space: `directions/<layer>`.

    Attributes:
        directions: each the weights of some channels, `{3: 1.0, 17: -0.5}`.
        layer: name of the layer; None: the last convolution.
        recipe: how pictures are made; `natural`, `channel` and `specific` all mean the mean along the direction.
        cache: folder of finished pictures, which are not made again; used outside training only. None: no cache.
        seed: of the initial noise.
        every: see `Visual`.
    """

    directions: Sequence[Mapping[int, float]]
    layer: str | None = None
    recipe: Recipe = field(default_factory=Recipe)
    cache: str | None = None
    seed: int = 0
    every: Every = 0

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if not self.directions or not all(any(weights.values()) for weights in self.directions):
            raise UserError(
                f"visuals.directions.directions={list(map(dict, self.directions))}; "
                "it must be a list of channels' weights that are not all 0, [{3: 1.0, 17: -0.5}]"
            )

    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> dict[str, Picture]:
        """Return one picture of all directions."""
        layer = find_layer(classifier.layers, self.layer or convolutions(classifier.layers)[-1]).name
        directions = self._tensor(classifier, layer)
        known = None
        if len(examples):
            known = measure_statistics(classifier, examples.images, [layer], directions=directions)
        indices = list(range(len(directions)))
        job = Job(
            layer=layer,
            channels=tuple(indices),
            recipe=self.recipe,
            seed=self.seed,
            statistics=known,
            directions=directions,
        )
        with progress_bar("directions", state) as progress:
            cache = cache_folder(self.cache, state)
            (result,) = synthesize_all(classifier, [job], cache=cache, progress=progress)
        picture = draw_synthesis(
            result,
            FilterSelection(channels=indices),
            layer=layer,
            names=[_name(weights) for weights in self.directions],
            what="directions",
            statistics=None if known is None else known.of(layer),
            header_note=epoch_label(state),
        )
        return {f"directions/{layer}": picture}

    def run_worker(self, classifier: Classifier) -> None:
        """Make this rank's share of the pictures that rank 0 draws."""
        run_synthesis_worker(classifier)

    def _tensor(self, classifier: Classifier, layer: str) -> Tensor:
        """Return the directions as `(D, K)`."""
        total = len(channels_of(classifier.layers, layer, None))
        tensor = torch.zeros(len(self.directions), total)
        for row, weights in zip(tensor, self.directions, strict=True):
            for channel in channels_of(classifier.layers, layer, list(weights)):
                row[channel] = weights[channel]
        return tensor


def _name(weights: Mapping[int, float]) -> str:
    """Return the name of a direction: its channels, with weights other than 1."""
    terms = (f"{'+' if weight > 0 else '−'}{'' if abs(weight) == 1 else f'{abs(weight):g}·'}{channel}"
             for channel, weight in weights.items() if weight)  # fmt: skip
    return " ".join(terms).removeprefix("+")
