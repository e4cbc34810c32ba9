"""Feature maps that examples cause, as pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from filterscope.analysis.activations import activations
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.layers import block_ends
from filterscope.registry import register
from filterscope.visuals.filter_selection import FilterSelection, check_order, judged_layer, select_filters
from filterscope.visuals.map_grid import draw_maps
from filterscope.visuals.output.outputs import Picture
from filterscope.visuals.visual import Examples, Visual, VisualState, epoch_label, name_of, redraw_note

PICKS = ("varied", "first")


@register("visual", "activations")
@dataclass(frozen=True, kw_only=True)
class Activations(Visual):
    """Draw the feature maps of a few channels for a few examples, one grid per layer: `activations/<layer>`.

    Attributes:
        layers: names of layers; None: where blocks end. A convolution's name means its output before the ReLU.
        channels: how many channels, a list of indices, or None for all.
        pick: which ones, where `channels` says how many: `varied` (whose positive values vary most over the
            examples when they are drawn for the first time) or `first`.
        order: `number`, or `verdict`: a fair sample from useful to dead, framed; needs the health visual.
        grid: `(rows, columns)` of channels for each image, instead of as many as `channels` says in a row.
        images: the first so many examples, or a list of their numbers.
        every: draw every so many epochs, 0: before training only.
    """

    layers: Sequence[str] | None = None
    channels: list[int] | int | None = 7
    pick: str = "varied"
    order: str = "number"
    grid: Sequence[int] | None = None
    images: list[int] | int = 4
    needs_images: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse a choice that does not exist."""
        check_order(self.order, where="visuals.activations.order")
        if self.pick not in PICKS:
            raise UserError(f"visuals.activations.pick={self.pick!r}; possible are {', '.join(PICKS)}")
        if self.grid is not None and (len(self.grid) != 2 or min(self.grid) < 1):
            raise UserError(f"visuals.activations.grid={list(self.grid)}; wants two numbers, rows and columns")

    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> dict[str, Picture]:
        """Return a picture of the maps of every layer that has something new to show."""
        if not len(examples):
            raise UserError("activations need images to look at: give images=[…] or a data set")
        layers = list(self.layers if self.layers is not None else block_ends(classifier.layers))
        judged = {layer: self._by_verdict(classifier, layer, state) for layer in layers}
        still = {
            layer: redraw_note(classifier, layer, f"activations/{layer}", state, extra=judged[layer].digest)
            for layer in layers
        }
        due = [layer for layer in layers if still[layer] is not None]
        places = self._places(examples)
        images = examples.images[places]
        names = _names(examples)
        maps = activations(classifier, images, due) if due else {}
        pictures = {}
        for layer in due:
            tag = f"activations/{layer}"
            chosen = judged[layer]
            if not chosen.verdicts:
                kept = state.store.setdefault("channels", {})
                chosen = FilterSelection(channels=self._channels(maps[layer], layer, kept))
            varied = self.pick == "varied" and isinstance(self._count, int) and not chosen.verdicts
            pictures[tag] = draw_maps(
                images,
                maps[layer][:, chosen.channels],
                chosen,
                layer=layer,
                total=maps[layer].shape[1],
                why="that vary most" if varied else "",
                names=[names[i] for i in places] if names else (),
                abreast=self.grid[1] if self.grid else None,
                aside=epoch_label(state),
                still=still[layer] or "",
            )
        return pictures

    def _by_verdict(self, classifier: Classifier, layer: str, state: VisualState) -> FilterSelection:
        if self.order == "number" or judged_layer(classifier, layer) is None:
            return FilterSelection(channels=[])
        return select_filters(classifier, layer, self._count, state, order=self.order)

    @property
    def _count(self) -> list[int] | int | None:
        if self.grid is None or isinstance(self.channels, list):
            return self.channels
        return self.grid[0] * self.grid[1]

    def _places(self, examples: Examples) -> list[int]:
        if isinstance(self.images, int):
            return list(range(min(self.images, len(examples))))
        wrong = [i for i in self.images if not 0 <= i < len(examples)]
        if wrong:
            raise UserError(f"visuals.activations.images={self.images}: there are {len(examples)} examples")
        return self.images

    def _channels(self, maps: Tensor, layer: str, kept: dict[str, list[int]]) -> list[int]:
        total, count = maps.shape[1], self._count
        if (maps.ndim == 2 and isinstance(count, int)) or count is None:
            return list(range(total))
        if not isinstance(count, int):
            wrong = [channel for channel in count if not 0 <= channel < total]
            if wrong:
                raise UserError(f"channel {wrong[0]} of {layer} does not exist; it has 0 to {total - 1}")
            return count[: self.grid[0] * self.grid[1]] if self.grid else count
        if self.pick == "first":
            return list(range(min(count, total)))
        # Which channels vary most changes while they learn; a grid that is to be followed keeps its columns.
        if len(kept.get(layer, ())) != min(count, total):
            kept[layer] = sorted(most_varied(maps, count).tolist())
        return kept[layer]


def most_varied(maps: Tensor, count: int) -> Tensor:
    """Return the indices of the channels whose positive values vary most over images and places, most first.

    Negative values do not count: a ReLU takes them away.

    Args:
        maps: `(N, channels, h, w)`.
        count: how many at most.
    """
    values = maps.nan_to_num().clamp_min_(0).transpose(0, 1).flatten(1)
    # A tenth of the time of `var`, whose one pass is numerically safe and slow.
    spread = (values - values.mean(dim=1, keepdim=True)).square_().mean(dim=1)
    return spread.topk(min(count, len(spread))).indices


def _names(examples: Examples) -> list[str]:
    if examples.labels is None:
        return list(examples.names)
    return [name_of(label, examples.class_names) for label in examples.labels.tolist()]
