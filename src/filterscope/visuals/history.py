"""Record every trained filter in every epoch for the slider of the gallery, and draw the records as animations."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field, PositiveFloat
from torch import Tensor

from filterscope.analysis.activations import activations
from filterscope.analysis.filters import kernels
from filterscope.analysis.health.verdict import Verdict
from filterscope.analysis.top_patches import TopResponses, measure_responses
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.layers import channels_of
from filterscope.registry import register
from filterscope.visuals.drawing.grid import Cell, Pixels, column_count, grid, tile_size
from filterscope.visuals.drawing.tiles import coloured_maps, kernel_tiles, photo, small_maps
from filterscope.visuals.filter_selection import convolution_names
from filterscope.visuals.filter_words import known_words
from filterscope.visuals.layer_state import is_frozen
from filterscope.visuals.output.outputs import Encoded, Output
from filterscope.visuals.visual import ChannelChoice, Every, Examples, LayerChoice, Visual, VisualState

AtLeastTwo = Annotated[int, Field(ge=2)]
SYNTHESIS_PIXELS = 64  # the side of a recorded synthesized image


@register("visual", "history")
@dataclass(frozen=True, kw_only=True)
class History(Visual):
    """Record kernel, best patch, response, verdict, words and synthesized image of every trained filter.

    It draws nothing itself. The records are small (uint8, one pixel per weight; of patches the place in the examples,
    which are recorded once) and are stored in the checkpoint. Outside training nothing is recorded.

    Attributes:
        layers: names of convolutions; None: all. Frozen layers do not change and are left out.
        image: the index of the example whose responses are recorded.
        pixels: the largest side of a recorded response.
        epochs: the largest number of recorded epochs; of more, the most evenly spaced ones are kept.
        every: record before training and then every so many epochs; 0: before training only.
    """

    priority: ClassVar[int] = 1
    needs_convolutions: ClassVar[bool] = True

    layers: LayerChoice = None
    image: int = 0
    pixels: int = 20
    epochs: AtLeastTwo = 12

    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> dict[str, Output]:
        """Record this epoch and return no output.

        Raises:
            UserError: there is no example `image`.
        """
        if state.epoch is None:
            return {}
        if len(examples) and not 0 <= self.image < len(examples):
            raise UserError(f"visuals.history.image={self.image}: there are {len(examples)} examples")
        names = trained_layers(classifier, self.layers)
        seen = bool(len(examples) and names)
        maps = activations(classifier, examples.images[[self.image]], names) if seen else {}
        best = measure_responses(classifier, examples.images, names, after_norm=True) if seen else {}
        if seen and "history_images" not in state.store:
            state.store["history_images"] = (examples.images * 255).round().to(torch.uint8)
        store = state.store.setdefault("history", {})
        for layer in names:
            records = store.setdefault(layer, {})
            records[state.epoch] = self._record(classifier, layer, maps.get(layer), best.get(layer), state)
            thin_out(records, self.epochs)
        return {}

    def _record(
        self,
        classifier: Classifier,
        layer: str,
        maps: Tensor | None,
        best: TopResponses | None,
        state: VisualState,
    ) -> dict[str, Any]:
        record: dict[str, Any] = {"kernel": torch.from_numpy(kernel_tiles(kernels(classifier, layer))[0])}
        if maps is not None:
            record["response"] = small_maps(maps[0], self.pixels)
        if best is not None:
            source = best.largest.argmax(0)
            position = best.positions.gather(0, source[None])[0]
            record["patch"] = torch.stack([source, position], dim=1).to(torch.int32)
            record["width"] = best.width
        health = state.store.get("health", {}).get(layer, {})
        if "verdicts" in health:
            record["verdicts"] = list(health["verdicts"])
        words = known_words(state, layer)
        if words is not None:
            record["sentences"] = list(words.sentences)
        synthesis = state.store.get("synthesis", {}).get(layer, {})
        if synthesis and synthesis["epoch"] == state.epoch:
            tiles = synthesis["tiles"].permute(0, 3, 1, 2).float()
            small = F.interpolate(tiles, (SYNTHESIS_PIXELS, SYNTHESIS_PIXELS), mode="bilinear", antialias=True)
            record["channels"] = list(synthesis["channels"])
            record["synthesis"] = small.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        return record


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

    layers: LayerChoice = None
    channels: ChannelChoice = 64
    kind: Literal["kernel", "synthesis", "response"] = "kernel"
    format: Literal["webp", "gif"] = "webp"
    seconds: PositiveFloat = 0.6
    every: Every = 0

    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> dict[str, Encoded]:
        """Return an animation of every layer.

        Raises:
            UserError: there are no records of the layers.
        """
        history = state.store.get("history", {})
        names = convolution_names(classifier, self.layers)
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


def trained_layers(classifier: Classifier, layers: Sequence[str] | None) -> list[str]:
    """Return the names of the given convolutions (None: all) without the frozen ones."""
    return [name for name in convolution_names(classifier, layers) if not is_frozen(classifier, name)]


def thin_out(records: dict[int, Any], count: int) -> None:
    """Delete records by epoch until `count` evenly spaced ones are left; the first and the last stay."""
    while len(records) > count:
        epochs = sorted(records)
        gaps = {epochs[i]: epochs[i + 1] - epochs[i - 1] for i in range(1, len(epochs) - 1)}
        del records[min(gaps, key=lambda epoch: (gaps[epoch], epoch))]


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
