"""Draw the filters of a layer over the epochs as an animation."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from filterscope.analysis.health.verdict import Verdict
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.layers import channels_of, convolutions, find_layer
from filterscope.registry import register
from filterscope.visuals.drawing.grid import Cell, Pixels, column_count, grid, tile_size
from filterscope.visuals.drawing.tiles import coloured_maps, photo
from filterscope.visuals.output.outputs import Encoded
from filterscope.visuals.visual import Every, Examples, Visual, VisualState

KINDS = ("kernel", "synthesis", "response")
FORMATS = ("webp", "gif")


@register("visual", "movies")
@dataclass(frozen=True, kw_only=True)
class Movies(Visual):
    """Draw the filters of a layer epoch by epoch: `movies/<layer>`, an animated WebP or GIF.

    It shows the records of the `history` visual. In training it is drawn when training has ended.

    Attributes:
        layers: names of convolutions; None: all that have records.
        channels: the first so many filters, a list of indices, or None for all.
        kind: `kernel`, `synthesis` (of the filters that were synthesized) or `response`.
        format: `webp` or `gif`.
        seconds: the duration of an epoch.
        every: draw every so many epochs of a training as well, 0: at its end only.
    """

    at_end: ClassVar[bool] = True

    layers: Sequence[str] | None = None
    channels: list[int] | int | None = 64
    kind: str = "kernel"
    format: str = "webp"
    seconds: float = 0.6
    every: Every = 0

    def __post_init__(self) -> None:
        """Refuse unknown choices."""
        for name, choices in (("kind", KINDS), ("format", FORMATS)):
            if getattr(self, name) not in choices:
                raise UserError(f"visuals.movies.{name}={getattr(self, name)!r}; possible are {', '.join(choices)}")

    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> dict[str, Encoded]:
        """Return an animation of every layer.

        Raises:
            UserError: there are no records of the layers.
        """
        del examples
        history = state.store.get("history", {})
        asked = self.layers if self.layers is not None else convolutions(classifier.layers)
        names = [find_layer(classifier.layers, name).name for name in asked]
        shown = {}
        for name in names:
            records = {epoch: record for epoch, record in sorted(history.get(name, {}).items()) if self.kind in record}
            if records:
                shown[f"movies/{name}"] = self._animate(classifier, name, records)
        if not shown:
            raise UserError(f"there is no history of {', '.join(names)} to animate; train with visuals=[history,…]")
        return shown

    def _animate(self, classifier: Classifier, layer: str, records: Mapping[int, Mapping[str, Any]]) -> Encoded:
        channels = channels_of(classifier.layers, layer, self.channels)
        if self.kind == "synthesis":
            made = set.intersection(*(set(record["channels"]) for record in records.values()))
            channels = [channel for channel in channels if channel in made]
        frames = [_frame(layer, self.kind, record, channels, epoch) for epoch, record in records.items()]
        text = f"**{layer}**, {self.kind} of {len(channels)} filters, epochs {min(records)} to {max(records)}"
        return Encoded(
            contents={self.format: encode_animation(frames, self.format, seconds=self.seconds)}, description=text
        )


def encode_animation(frames: Sequence[Pixels], file_format: str, *, seconds: float) -> bytes:
    """Encode frames of one size as an endlessly repeating `webp` or `gif`; each is shown for `seconds`."""
    images = [Image.fromarray(frame) for frame in frames]
    file = io.BytesIO()
    images[0].save(
        file,
        format=file_format,
        save_all=True,
        append_images=images[1:],
        duration=round(1000 * seconds),
        loop=0,
        quality=80,
    )
    return file.getvalue()


def _frame(layer: str, kind: str, record: Mapping[str, Any], channels: Sequence[int], epoch: int) -> Pixels:
    columns = column_count(len(channels))
    size = tile_size(columns)
    verdicts = record.get("verdicts")
    cells = [
        Cell(pixels=photo(tile, size), caption=(str(i),), frame=Verdict(verdicts[i]).colour if verdicts else None)
        for i, tile in zip(channels, _tiles(kind, record, channels), strict=True)
    ]
    key = [(verdict.value, verdict.colour) for verdict in Verdict] if verdicts else []
    notes = [f"{kind} of each filter"]
    return grid(cells, columns=columns, title=layer, header_note=f"epoch {epoch}", notes=notes, key=key)


def _tiles(kind: str, record: Mapping[str, Any], channels: Sequence[int]) -> Tensor:
    """Return the tiles of filters as images `(filters, C, h, w)` in [0, 1]."""
    if kind == "response":
        pixels = torch.from_numpy(coloured_maps(record["response"][list(channels)]))
    elif kind == "synthesis":
        pixels = record["synthesis"][[record["channels"].index(channel) for channel in channels]]
    else:
        pixels = record["kernel"][list(channels)]
    return pixels.permute(0, 3, 1, 2).float() / 255
