"""The same filters by several recipes, one below the other."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from filterscope.analysis.activations import activations
from filterscope.analysis.synthesis import Job, LayerStatistics, Recipe, run_synthesis_worker, synthesize_all
from filterscope.analysis.synthesis import Synthesis as Made
from filterscope.analysis.synthesis.objectives import mean_response
from filterscope.analysis.synthesis.trust import ranks
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.layers import channels_of, convolutions
from filterscope.registry import register
from filterscope.visuals.drawing.grid import VERMILION, Cell, grid, side
from filterscope.visuals.drawing.tiles import photo
from filterscope.visuals.output.outputs import Output, Picture, Table
from filterscope.visuals.progress import progress_bar
from filterscope.visuals.trust import real_statistics, trust_lines
from filterscope.visuals.visual import Every, Examples, Visual, VisualState, epoch_label

log = logging.getLogger(__name__)

PICKS = ("first", "random")
_HOW = (
    "The same filters of **{layer}** by {count} recipes, one row each. A recipe that does not bound its pixels is "
    "shown scaled from its smallest to its largest value. The line below says how far to trust a picture **as it is "
    "shown here**, given to the network like any image: **12×**, it excites the filter twelve times as much as the "
    "best real image; **rank 1**, it excites its own filter more than any other of the layer. {compared}"
)


@register("visual", "comparison")
@dataclass(frozen=True, kw_only=True)
class Comparison(Visual):
    """Synthesize the same filters by several recipes: pictures `comparison/<layer>`, curves `objective/<layer>`.

    Attributes:
        recipes: by name; each makes one row.
        layers: names of layers; a number: so many convolutions drawn at random; None: every convolution.
        channels: the first so many, a list of indices, or None for all.
        pick: which ones, where `channels` says how many: the `first`, or drawn at `random`.
        report: tell and keep the objective every so many steps; 0: never.
        keep: folder in which finished pictures are kept, so that none is made twice; outside training only.
        seed: of what is drawn at random, and of the noise that pictures start from.
        every: draw every so many epochs, 0: before training only.
    """

    recipes: Mapping[str, Recipe] = field(default_factory=lambda: {"specific": Recipe()})
    layers: Sequence[str] | int | None = None
    channels: list[int] | int | None = 4
    pick: str = "first"
    report: int = 10
    keep: str | None = None
    seed: int = 0
    every: Every = 0

    def __post_init__(self) -> None:
        """Refuse choices that do not exist."""
        if self.pick not in PICKS:
            raise UserError(f"visuals.comparison.pick={self.pick!r}; possible are {', '.join(PICKS)}")
        if not self.recipes:
            raise UserError("visuals.comparison.recipes names no recipe")

    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> dict[str, Output]:
        """Return a picture and a table of objectives for every layer."""
        chosen = self._chosen(classifier)
        known = real_statistics(classifier, list(chosen), examples, state)
        keep = Path(self.keep).expanduser() if self.keep and state.epoch is None else None
        jobs = [
            Job(layer=layer, channels=tuple(own), recipe=recipe, seed=self.seed, statistics=known.layers.get(layer))
            for layer, own in chosen.items()
            for recipe in self.recipes.values()
        ]
        with progress_bar("comparison", state) as progress:
            pictures = iter(synthesize_all(classifier, jobs, keep=keep, progress=progress))
        shown: dict[str, Output] = {}
        for layer, channels in chosen.items():
            made = {name: next(pictures) for name in self.recipes}
            real = known.layers.get(layer)
            judged = {name: as_shown(classifier, layer, channels, each, real) for name, each in made.items()}
            shown[f"comparison/{layer}"] = draw_comparison(
                judged, channels, layer=layer, statistics=real, aside=epoch_label(state)
            )
            if self.report:
                for name, each in made.items():
                    _tell(each.curve, channels, self.report, where=f"{layer}, {name}")
                shown[f"objective/{layer}"] = _curves(made, channels, self.report, layer)
        return shown

    def run_worker(self, classifier: Classifier) -> None:
        """Make this process's share of the pictures that the first process draws."""
        run_synthesis_worker(classifier)

    def _chosen(self, classifier: Classifier) -> dict[str, list[int]]:
        generator = torch.Generator().manual_seed(self.seed)
        names: Sequence[str] = convolutions(classifier.layers)
        if isinstance(self.layers, int):
            names = [names[i] for i in _drawn(len(names), self.layers, generator)]
        elif self.layers is not None:
            names = self.layers
        chosen = {}
        for name in names:
            total = len(channels_of(classifier.layers, name, None))
            if self.pick == "random" and isinstance(self.channels, int):
                chosen[name] = _drawn(total, self.channels, generator)
            else:
                chosen[name] = channels_of(classifier.layers, name, self.channels)
        return chosen


def as_shown(
    classifier: Classifier, layer: str, channels: Sequence[int], made: Made, statistics: LayerStatistics | None
) -> Made:
    """Return the same pictures judged as images in [0, 1] that the network normalises, as it does real ones."""
    responses = mean_response(activations(classifier, made.images, [layer])[layer])
    own = responses[torch.arange(len(channels)), torch.tensor(list(channels))]
    return dataclasses.replace(made, responses=responses, activation=own, rank=ranks(responses, channels, statistics))


def draw_comparison(
    made: Mapping[str, Made],
    channels: Sequence[int],
    *,
    layer: str,
    statistics: LayerStatistics | None = None,
    aside: str = "",
) -> Picture:
    """Draw the pictures of each recipe in a row under layer and channel, and how far to trust them."""
    labels = 150
    size = side(len(channels), labels=labels)
    cells = []
    for each in made.values():
        lines = trust_lines(each, channels, statistics)
        for image, channel, trust, rose in zip(each.images, channels, lines, each.rose.tolist(), strict=True):
            caption = (f"filter {channel}", *trust)
            frame = None if rose else VERMILION
            cells.append(Cell(pixels=photo(image, size), caption=caption, toned=len(trust), frame=frame))
    compared = (
        f"× = times the best of {statistics.count} real images" if statistics else "not compared with real images"
    )
    drawn = grid(
        cells,
        columns=len(channels),
        title=layer,
        aside=aside,
        notes=[f"what excites each filter most, by recipe; {compared}"],
        row_labels=list(made),
        label_width=labels,
    )
    how = _HOW.format(layer=layer, count=len(made), compared=f"{compared[0].upper()}{compared[1:]}.")
    return Picture(drawn=drawn, description=how)


def _drawn(total: int, count: int, generator: torch.Generator) -> list[int]:
    return sorted(torch.randperm(total, generator=generator)[:count].tolist())


def _tell(curve: Tensor, channels: Sequence[int], report: int, *, where: str) -> None:
    for step in range(report, len(curve) + 1, report):
        values = ", ".join(f"{v:.6f} ({c})" for v, c in zip(curve[step - 1].tolist(), channels, strict=True))
        log.info("%s: step %d: %s", where, step, values)


def _curves(made: Mapping[str, Made], channels: Sequence[int], report: int, layer: str) -> Table:
    rows = [
        (name, channel, step, float(each.curve[step - 1, i]))
        for name, each in made.items()
        for i, channel in enumerate(channels)
        for step in range(report, len(each.curve) + 1, report)
    ]
    about = f"What the ascents of **{layer}** climbed, every {report} steps, each in its own recipe's units."
    return Table(columns=("recipe", "filter", "step", "objective"), rows=tuple(rows), description=about)
