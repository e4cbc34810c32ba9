"""Single filters over the epochs: kernel, synthesized picture, response to one image and verdict, side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from filterscope.analysis.activations import activations
from filterscope.analysis.filters import kernels
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.layers import channels_of, convolutions, find_layer
from filterscope.registry import register
from filterscope.visuals.drawing.grid import BACKGROUND, Cell, grid
from filterscope.visuals.drawing.pixels import Tile, blank, rgb
from filterscope.visuals.drawing.tiles import photo, signed_maps
from filterscope.visuals.filter_selection import COLOURS
from filterscope.visuals.filters import filter_tiles
from filterscope.visuals.fingerprints import is_frozen
from filterscope.visuals.output.outputs import Picture
from filterscope.visuals.visual import Examples, Visual, VisualState

TILE = 88
KINDS = ("kernel", "synthesis", "response")

_HOW = (
    "Each column is an epoch; 0 is before training. Every filter has a row for its kernel, one for the picture that "
    "excites it most (where synthesis is drawn), and one for its response to one image: red positive, blue negative, "
    "white zero, each scaled by itself. The word below a column and the frame's colour are the verdict of that epoch. "
    "A kernel that turns from noise into an edge or a colour has learned something."
)


@register("visual", "timeline")
@dataclass(frozen=True, kw_only=True)
class Timeline(Visual):
    """Draw what a few filters were in the epochs so far, one strip per layer: `timeline/<layer>`.

    Outside training the strip that the checkpoint remembers is drawn as it is.

    Attributes:
        layers: names of convolutions; None: all. Frozen ones have no story and are left out.
        channels: how many filters, of those that are synthesized where there are any; or a list of indices.
        image: the number of the example that the filters respond to.
        epochs: at most so many columns; of more epochs, those are kept that lie most evenly.
        every: look every so many epochs, 0: before training only.
    """

    needs_images: ClassVar[bool] = True
    priority: ClassVar[int] = 1

    layers: Sequence[str] | None = None
    channels: list[int] | int = 2
    image: int = 0
    epochs: int = 8

    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> dict[str, Picture]:
        """Return a strip of every layer that is trained.

        Raises:
            UserError: there is no such example, or `epochs` is less than two.
        """
        if self.epochs < 2:
            raise UserError(f"visuals.timeline.epochs={self.epochs}; a strip needs at least 2")
        if not 0 <= self.image < len(examples):
            raise UserError(f"visuals.timeline.image={self.image}: there are {len(examples)} examples")
        store = state.store.setdefault("timeline", {})
        asked = self.layers if self.layers is not None else convolutions(classifier.layers)
        names = [find_layer(classifier.layers, name).name for name in asked]
        if state.epoch is not None:
            names = [layer for layer in names if not is_frozen(classifier, layer)]
            maps = activations(classifier, examples.images[[self.image]], names) if names else {}
            for layer in names:
                self._remember(classifier, layer, maps[layer][0], state, store)
        image = examples.images[self.image]
        return {f"timeline/{layer}": draw_strip(store[layer], layer, image) for layer in names if layer in store}

    def _remember(
        self, classifier: Classifier, layer: str, maps: Tensor, state: VisualState, store: dict[str, Any]
    ) -> None:
        if layer not in store:
            store[layer] = {"channels": self._channels(classifier, layer, state), "epochs": {}}
        known = store[layer]
        judged = state.store.get("health", {}).get(layer, {}).get("verdicts")
        known["epochs"][state.epoch] = {
            "verdicts": [judged[i] if judged else "" for i in known["channels"]],
            **_tiles(classifier, layer, known["channels"], maps, state),
        }
        epochs = sorted(known["epochs"])
        if len(epochs) > self.epochs:
            del known["epochs"][most_crowded(epochs)]

    def _channels(self, classifier: Classifier, layer: str, state: VisualState) -> list[int]:
        made = state.store.get("synthesis", {}).get(layer, {}).get("channels")
        if isinstance(self.channels, int) and made:
            return list(made[: self.channels])
        return channels_of(classifier.layers, layer, self.channels)


def most_crowded(epochs: Sequence[int]) -> int:
    """Return the epoch, neither the first nor the last, without which the gap that arises is smallest."""
    gaps = {epochs[i]: epochs[i + 1] - epochs[i - 1] for i in range(1, len(epochs) - 1)}
    return min(gaps, key=lambda epoch: (gaps[epoch], epoch))


def draw_strip(known: Mapping[str, Any], layer: str, image: Tensor) -> Picture:
    """Draw what is remembered of a layer: a row of epochs for each filter and kind of tile."""
    epochs = sorted(known["epochs"])
    kinds = [kind for kind in KINDS if any(kind in known["epochs"][epoch] for epoch in epochs)]
    cells, labels = [], []
    for place, channel in enumerate(known["channels"]):
        for kind in kinds:
            labels.append(f"{channel}" if kind == kinds[0] else "")
            cells += [_cell(known["epochs"][epoch], kind, place, last=kind == kinds[-1]) for epoch in epochs]
    said = {verdict for epoch in epochs for verdict in known["epochs"][epoch]["verdicts"]}
    drawn = grid(
        cells,
        columns=len(epochs),
        title=layer,
        notes=[f"{len(known['channels'])} filters over the epochs: {', '.join(kinds)}"],
        key=[(verdict, colour) for verdict, colour in COLOURS.items() if verdict in said],
        thumbnail=photo(image, 110),
        row_labels=labels,
        column_labels=[str(epoch) for epoch in epochs],
        label_width=90,
    )
    return Picture(drawn=drawn, description=f"**{layer}**, filters {known['channels']}. {_HOW}")


def _cell(seen: Mapping[str, Any], kind: str, place: int, *, last: bool) -> Cell:
    tile: Tile = seen[kind][place].numpy() if kind in seen else blank(BACKGROUND, TILE, TILE)
    verdict = seen["verdicts"][place]
    return Cell(pixels=tile, caption=(verdict,) if last and verdict else (), frame=COLOURS.get(verdict))


def _tiles(
    classifier: Classifier, layer: str, channels: list[int], maps: Tensor, state: VisualState
) -> dict[str, Tensor]:
    """Return the tiles of this epoch by kind, uint8 `(filters, height, width, 3)`."""
    drawn = filter_tiles(kernels(classifier, layer)[channels], TILE)[0]
    tiles = {
        "kernel": _stack(drawn),
        "response": torch.from_numpy(signed_maps(maps[channels], TILE).rgb()),
    }
    made = state.store.get("synthesis", {}).get(layer, {})
    if "tiles" in made and set(channels) <= set(made["channels"]):
        tiles["synthesis"] = made["tiles"][[made["channels"].index(channel) for channel in channels]]
    return tiles


def _stack(tiles: Sequence[Tile]) -> Tensor:
    return torch.stack([torch.from_numpy(np.ascontiguousarray(rgb(tile))) for tile in tiles])
