"""The outputs of layers for a few examples: feature maps as pictures, and tensors in a file."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt
from torch import Tensor

from filterscope.analysis.activations import activations
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.layers import block_ends
from filterscope.registry import register
from filterscope.visuals.filter_selection import FilterSelection, check_order, judged_layer, select_filters
from filterscope.visuals.map_grid import draw_maps
from filterscope.visuals.output.outputs import Arrays, Picture
from filterscope.visuals.visual import (
    ChannelChoice,
    Examples,
    LayerChoice,
    Visual,
    VisualState,
    layer_note,
    name_of,
)

log = logging.getLogger(__name__)

FEWEST_PIXELS = 4
"""The smallest height and width of maps that are drawn by default."""


@register("visual", "activations")
@dataclass(frozen=True, kw_only=True)
class Activations(Visual):
    """Draw the feature maps of a few channels for a few examples, one grid per layer: `activations/<layer>`.

    Attributes:
        layers: names of layers; None: the ends of the blocks whose maps have at least 4×4 pixels, if there are any. A
            convolution's name means its output before the ReLU.
        channels: the number of channels, a list of indices, or None for all.
        pick: which channels, if `channels` is a number: `varied` (those whose positive values vary most over the
            examples when they are drawn for the first time) or `first`.
        order: `number`, or `verdict`: a representative sample from useful to dead, framed by verdict; needs the
            health visual.
        grid: `(rows, columns)` of channels for each image; None: one row of `channels` maps.
        images: the number of examples, counted from the first, or a list of their numbers.
    """

    layers: LayerChoice = None
    channels: ChannelChoice = 7
    pick: Literal["varied", "first"] = "varied"
    order: str = "number"
    grid: tuple[PositiveInt, PositiveInt] | None = None
    images: Annotated[list[int], Field(min_length=1)] | PositiveInt = 4
    needs_images: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raise a `UserError` for an option that is not possible."""
        super().__post_init__()
        check_order(self.order, where="visuals.activations.order")

    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> dict[str, Picture]:
        """Return one picture for every layer that must be drawn."""
        if not len(examples):
            raise UserError("activations need images: give images=[…] or a data set")
        layers = list(self.layers if self.layers is not None else block_ends(classifier.layers))
        notes = {layer: layer_note(classifier, layer, f"activations/{layer}", state) for layer in layers}
        due = [layer for layer in layers if notes[layer] is not None]
        numbers = self._image_numbers(examples)
        images, names = examples.images[numbers], _names(examples)
        maps = activations(classifier, images, due) if due else {}
        if self.layers is None:
            due = _large_enough(maps, tell=not state.epoch)
        pictures = {}
        for layer in due:
            selection = self._select(classifier, layer, maps[layer], state)
            varied = self.pick == "varied" and isinstance(self._count, int) and not selection.verdicts
            pictures[f"activations/{layer}"] = draw_maps(
                images,
                maps[layer][:, selection.channels],
                selection,
                layer=layer,
                total=maps[layer].shape[1],
                criterion="that vary most" if varied else "",
                names=[names[i] for i in numbers] if names else (),
                columns=self.grid[1] if self.grid else None,
                header_note=notes[layer] or "",
            )
        return pictures

    @property
    def _count(self) -> list[int] | int | None:
        if self.grid is None or isinstance(self.channels, list):
            return self.channels
        return self.grid[0] * self.grid[1]

    def _image_numbers(self, examples: Examples) -> list[int]:
        if isinstance(self.images, int):
            return list(range(min(self.images, len(examples))))
        if any(not 0 <= i < len(examples) for i in self.images):
            raise UserError(f"visuals.activations.images={self.images}: there are {len(examples)} examples")
        return self.images

    def _select(self, classifier: Classifier, layer: str, maps: Tensor, state: VisualState) -> FilterSelection:
        if self.order == "verdict" and judged_layer(classifier, layer) is not None:
            return select_filters(classifier, layer, self._count, state, order=self.order)
        total, count = maps.shape[1], self._count
        if count is None or (maps.ndim == 2 and isinstance(count, int)):
            return FilterSelection(channels=list(range(total)))
        if not isinstance(count, int):
            if wrong := [channel for channel in count if not 0 <= channel < total]:
                raise UserError(f"channel {wrong[0]} of {layer} does not exist; it has 0 to {total - 1}")
            return FilterSelection(channels=count[: self.grid[0] * self.grid[1]] if self.grid else count)
        if self.pick == "first":
            return FilterSelection(channels=list(range(min(count, total))))
        # Which channels vary most changes in training; the columns are kept, so that the grid can be followed.
        kept: dict[str, list[int]] = state.store.setdefault("channels", {})
        if len(kept.get(layer, ())) != min(count, total):
            kept[layer] = sorted(most_varied(maps, count).tolist())
        return FilterSelection(channels=kept[layer])


@register("visual", "taps")
@dataclass(frozen=True, kw_only=True)
class Taps(Visual):
    """Save the outputs of layers for the examples in `taps.npz`, together with the `images`.

    Attributes:
        layers: names of layers; None: the ends of the blocks. A convolution's name means its output before the ReLU.
        images: the number of examples.
    """

    layers: LayerChoice = None
    images: PositiveInt = 1
    needs_images: ClassVar[bool] = True

    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> dict[str, Arrays]:
        """Return the images and the outputs of every layer."""
        images = examples.images[: self.images]
        if not len(images):
            raise UserError("taps need images: give images=[…] or a data set")
        layers = list(self.layers if self.layers is not None else block_ends(classifier.layers))
        return {"taps": Arrays(arrays={"images": images, **activations(classifier, images, layers)})}


def most_varied(maps: Tensor, count: int) -> Tensor:
    """Return the indices of the channels whose positive values vary most over images and positions, most first.

    Negative values do not count, because a ReLU sets them to zero.

    Args:
        maps: `(N, channels, h, w)`.
        count: the number of channels at most.
    """
    values = maps.nan_to_num().clamp_min_(0).transpose(0, 1).flatten(1)
    # A tenth of the time of `var`, whose single pass is numerically safe and slow.
    spread = (values - values.mean(dim=1, keepdim=True)).square_().mean(dim=1)
    return spread.topk(min(count, len(spread))).indices


def _large_enough(maps: Mapping[str, Tensor], *, tell: bool) -> list[str]:
    """Return the layers whose maps show where something is; all if there are none; the log tells what is left out."""
    small = [layer for layer, values in maps.items() if values.ndim == 4 and min(values.shape[-2:]) < FEWEST_PIXELS]
    if len(small) == len(maps):
        return small
    for layer in small if tell else ():
        size = "×".join(map(str, maps[layer].shape[-2:]))
        log.info(
            "activations/%s is left out: its maps have %s pixels; visuals.activations.layers draws it", layer, size
        )
    return [layer for layer in maps if layer not in small]


def _names(examples: Examples) -> list[str]:
    if examples.labels is None:
        return list(examples.names)
    return [name_of(label, examples.class_names) for label in examples.labels.tolist()]
