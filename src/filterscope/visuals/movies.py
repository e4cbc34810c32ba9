"""Filters of a layer over the epochs, as a moving picture."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.layers import channels_of, convolutions, find_layer
from filterscope.registry import register
from filterscope.visuals.drawing.grid import Cell, grid, shape, side
from filterscope.visuals.drawing.pixels import Pixels, rgb
from filterscope.visuals.drawing.thumbnails import coloured
from filterscope.visuals.drawing.tiles import photo
from filterscope.visuals.filter_selection import COLOURS
from filterscope.visuals.output.outputs import Encoded
from filterscope.visuals.visual import Every, Examples, Visual, VisualState

KINDS = ("kernel", "synthesis", "response")


@register("visual", "movies")
@dataclass(frozen=True, kw_only=True)
class Movies(Visual):
    """Draw the filters of a layer as they were epoch by epoch: `movies/<layer>`, an animated WebP or GIF.

    It shows what the `history` visual remembered, in a training when that has ended.

    Attributes:
        layers: names of convolutions; None: all of which anything is remembered.
        channels: the first so many filters, a list of indices, or None for all.
        kind: `kernel`, `synthesis` (of the filters that were synthesized) or `response`.
        format: `webp` or `gif`.
        seconds: that an epoch is shown.
        every: draw every so many epochs of a training as well, 0: at its end alone.
    """

    at_end: ClassVar[bool] = True

    layers: Sequence[str] | None = None
    channels: list[int] | int | None = 64
    kind: str = "kernel"
    format: str = "webp"
    seconds: float = 0.6
    every: Every = 0

    def __post_init__(self) -> None:
        """Refuse choices that do not exist."""
        for name, choices in (("kind", KINDS), ("format", ("webp", "gif"))):
            if getattr(self, name) not in choices:
                raise UserError(f"visuals.movies.{name}={getattr(self, name)!r}; possible are {', '.join(choices)}")

    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> dict[str, Encoded]:
        """Return a film of every layer.

        Raises:
            UserError: nothing is remembered of the epochs.
        """
        del examples
        history = state.store.get("history", {})
        asked = self.layers if self.layers is not None else convolutions(classifier.layers)
        names = [find_layer(classifier.layers, name).name for name in asked]
        told = {name: history[name] for name in names if any(map(self._is_in, history.get(name, {}).values()))}
        if not told:
            raise UserError(
                f"no epochs of {', '.join(names)} are remembered to make a film of; train with visuals=[history,…]"
            )
        return {f"movies/{name}": self._film(classifier, name, known) for name, known in told.items()}

    def _is_in(self, seen: Mapping[str, Any]) -> bool:
        return self.kind in seen

    def _film(self, classifier: Classifier, layer: str, known: Mapping[int, Mapping[str, Any]]) -> Encoded:
        channels = channels_of(classifier.layers, layer, self.channels)
        epochs = [epoch for epoch in sorted(known) if self._is_in(known[epoch])]
        if self.kind == "synthesis":
            made = set.intersection(*(set(known[epoch]["channels"]) for epoch in epochs))
            channels = [channel for channel in channels if channel in made]
        frames = [_frame(layer, self.kind, known[epoch], channels, epoch) for epoch in epochs]
        about = f"**{layer}**, {self.kind} of {len(channels)} filters, epochs {epochs[0]} to {epochs[-1]}"
        return Encoded(contents={self.format: film(frames, self.format, seconds=self.seconds)}, description=about)


def film(frames: Sequence[Pixels], kind: str, *, seconds: float) -> bytes:
    """Return frames of one size as an animated `webp` or `gif` that starts again at its end."""
    images = [Image.fromarray(frame) for frame in frames]
    file = io.BytesIO()
    images[0].save(
        file, format=kind, save_all=True, append_images=images[1:], duration=round(1000 * seconds), loop=0, quality=80
    )
    return file.getvalue()


def _frame(layer: str, kind: str, seen: Mapping[str, Any], channels: Sequence[int], epoch: int) -> Pixels:
    columns = shape(len(channels))
    size = side(columns)
    said = seen.get("verdicts")
    cells = [
        Cell(pixels=photo(tile, size), caption=(str(channel),), frame=COLOURS[said[channel]] if said else None)
        for channel, tile in zip(channels, _tiles(kind, seen, channels), strict=True)
    ]
    key = [(verdict, colour) for verdict, colour in COLOURS.items()] if said else []
    notes = [f"{kind} of each filter"]
    return rgb(grid(cells, columns=columns, title=layer, aside=f"epoch {epoch}", notes=notes, key=key))


def _tiles(kind: str, seen: Mapping[str, Any], channels: Sequence[int]) -> Tensor:
    """Return a tile `(C, h, w)` in [0, 1] of each filter."""
    if kind == "response":
        pixels = torch.from_numpy(coloured(seen["response"][list(channels)]))
    elif kind == "synthesis":
        pixels = seen["synthesis"][[seen["channels"].index(channel) for channel in channels]]
    else:
        pixels = seen["kernel"][list(channels)]
    return pixels.permute(0, 3, 1, 2).float() / 255
