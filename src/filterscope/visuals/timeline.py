"""Draw a few filters, in one card for each epoch and over all epochs: kernel, synthesis, response and verdict."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from filterscope.analysis.activations import activations
from filterscope.analysis.filters import kernels
from filterscope.analysis.health.verdict import Verdict
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.layers import channels_of
from filterscope.registry import register
from filterscope.visuals.drawing.grid import Cell, Colour, Pixels, blank, grid, tile_size
from filterscope.visuals.drawing.tiles import kernel_tiles, photo, signed_maps
from filterscope.visuals.filter_selection import convolution_names
from filterscope.visuals.filter_words import known_words
from filterscope.visuals.history import AtLeastTwo, thin_out, trained_layers
from filterscope.visuals.output.outputs import Picture
from filterscope.visuals.visual import ChannelChoice, Examples, LayerChoice, Visual, VisualState

TILE = 88  # pixels
KINDS = ("kernel", "synthesis", "response")
CARD = "Overview"
"""The tag of the card: a capital letter, so that TensorBoard shows it first."""
_CARD_COLUMNS = {"kernel": "kernel", "synthesis": "picture", "response": "map"}
_CARD_LABEL = 190  # pixels
_CARD_LAYERS = 3  # rows of a card, which TensorBoard shows 215 pixels high

_DOT = (
    "a dot marks the best patch of the example images, where the synthesized image activates the filter less than a "
    "real image does or is not to be trusted"
)
_CARD_DESCRIPTION = (
    "A few filters, as they are after this epoch. *kernel*: its weights, with its number below; *picture*: an image "
    f"synthesized to activate it ({_DOT}); *map*: its response to the image in the corner, red positive, blue "
    "negative. The frame has the colour of its verdict. Move the slider to see all of them learn."
)
_DESCRIPTION = (
    "Each column is an epoch; 0 is before training. Every filter has one row for its kernel, one for an image "
    f"synthesized to activate it (if synthesis is drawn; {_DOT}), and one for its response to one image: red positive, "
    "blue negative, white zero, each scaled by its own largest value. The word below a column and the colour of its "
    "frame are the verdict of that epoch, and the number is the expected change of the loss without the filter. A "
    "kernel that turns from noise into an edge or a colour has learned something."
)


@register("visual", "timeline")
@dataclass(frozen=True, kw_only=True)
class Timeline(Visual):
    """Draw a few filters of each layer: one card for each epoch, `Overview`, and all epochs in `timeline/<layer>`.

    In a training the latter is drawn when it has ended. Outside training, what the checkpoint holds is drawn.

    Attributes:
        layers: names of convolutions; None: all. Frozen layers do not change and are left out.
        channels: how many filters, of the synthesized ones if there are any; or a list of indices.
        image: the index of the example that the filters respond to.
        epochs: the largest number of columns; of more epochs, the most evenly spaced ones are kept.
        every: record and draw before training and then every so many epochs; 0: before training only.
    """

    needs_images: ClassVar[bool] = True
    priority: ClassVar[int] = 1
    again_at_end: ClassVar[bool] = True

    layers: LayerChoice = None
    channels: ChannelChoice = 2
    image: int = 0
    epochs: AtLeastTwo = 8

    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> dict[str, Picture]:
        """Return the card of this epoch, or a picture of every trained layer, or both outside training.

        Raises:
            UserError: there is no example `image`.
        """
        if not 0 <= self.image < len(examples):
            raise UserError(f"visuals.timeline.image={self.image}: there are {len(examples)} examples")
        store = state.store.setdefault("timeline", {})
        names = convolution_names(classifier, self.layers)
        if state.epoch is not None and not state.ended:
            names = trained_layers(classifier, names)
            maps = activations(classifier, examples.images[[self.image]], names) if names else {}
            for layer in names:
                known = store.setdefault(layer, {"channels": self._channels(classifier, layer, state), "epochs": {}})
                known["epochs"][state.epoch] = _record(classifier, layer, known["channels"], maps[layer][0], state)
                thin_out(known["epochs"], self.epochs)
        image = examples.images[self.image]
        drawn = {layer: store[layer] for layer in names if layer in store}
        shown = {} if state.ended or not drawn else {CARD: draw_card(drawn, image, state.store.get("metrics", {}))}
        # Own loops around `render`, which set no `epoch_images`, never say that they have ended.
        if state.ended or state.epoch is None or state.epoch_images is None:
            shown |= {f"timeline/{layer}": draw_timeline(record, layer, image) for layer, record in drawn.items()}
        return shown

    def _channels(self, classifier: Classifier, layer: str, state: VisualState) -> list[int]:
        synthesized = state.store.get("synthesis", {}).get(layer, {}).get("selected")
        if isinstance(self.channels, int) and synthesized:
            return list(synthesized[: self.channels])
        return channels_of(classifier.layers, layer, self.channels)


def draw_card(
    known: Mapping[str, Mapping[str, Any]], image: Tensor, metrics: Mapping[int, Mapping[str, float]]
) -> Picture:
    """Draw the newest records of up to three layers, the first and the last among them: a row for each.

    Args:
        known: by layer, as `draw_timeline` takes it.
        image: the example that the filters respond to, `(C, H, W)` in [0, 1].
        metrics: of the run, by epoch.
    """
    layers = [list(known)[i] for i in np.linspace(0, len(known) - 1, min(_CARD_LAYERS, len(known))).round().astype(int)]
    records = {layer: dict(sorted(known[layer]["epochs"].items())) for layer in layers}
    epoch = max(max(each) for each in records.values())
    kinds = [kind for kind in KINDS if any(kind in record for each in records.values() for record in each.values())]
    filters = min(2, *(len(known[layer]["channels"]) for layer in layers))
    size = tile_size(filters * len(kinds), labels=_CARD_LABEL, largest=150)
    cells = []
    for layer, each in records.items():
        newest = max(each)
        for place, channel in enumerate(known[layer]["channels"][:filters]):
            for kind in kinds:
                # An epoch may have no synthesized images; those of an earlier one are shown, and its number.
                made = max((number for number, record in each.items() if kind in record), default=newest)
                tile = _cell(each[made], kind, place, last=False)
                caption = str(channel) if kind == "kernel" else f"epoch {made}" if made < epoch else ""
                frame = _cell(each[newest], "kernel", place, last=False).frame
                cells.append(replace(tile, pixels=_enlarged(tile.pixels, size), caption=(caption,), frame=frame))
    accuracy = metrics.get(epoch, {}).get("val/acc")
    drawn = grid(
        cells,
        columns=filters * len(kinds),
        title="filters",
        header_note=f"epoch {epoch}" + ("" if accuracy is None else f", val/acc {accuracy:.3f}"),
        key=_verdict_key(each[max(each)] for each in records.values()),
        thumbnail=photo(image, 80),
        row_labels=layers,
        column_labels=[_CARD_COLUMNS[kind] for kind in kinds] * filters,
        label_width=_CARD_LABEL,
    )
    return Picture(pixels=drawn, description=_CARD_DESCRIPTION)


def draw_timeline(known: Mapping[str, Any], layer: str, image: Tensor) -> Picture:
    """Draw the records of a layer: a row for each filter and kind of tile, a column for each epoch.

    Args:
        known: `channels` of the filters, and by epoch in `epochs` their tiles by kind, `verdicts` and `importance`.
        layer: the layer's name.
        image: the example that the filters respond to, `(C, H, W)` in [0, 1].
    """
    records = dict(sorted(known["epochs"].items()))
    kinds = [kind for kind in KINDS if any(kind in record for record in records.values())]
    made = [str(epoch) for epoch, record in records.items() if "synthesis" in record]
    partly = (
        f"; synthesis of epoch{'s' * (len(made) > 1)} {', '.join(made)} only" if 0 < len(made) < len(records) else ""
    )
    cells, labels = [], []
    for place, channel in enumerate(known["channels"]):
        for kind in kinds:
            labels.append(f"{channel}" if kind == kinds[0] else "")
            cells += [_cell(record, kind, place, last=kind == kinds[-1]) for record in records.values()]
    drawn = grid(
        cells,
        columns=len(records),
        title=layer,
        notes=[f"{len(known['channels'])} filters over the epochs: {', '.join(kinds)}{partly}"],
        key=_verdict_key(records.values()),
        thumbnail=photo(image, 110),
        row_labels=labels,
        column_labels=[str(epoch) for epoch in records],
        label_width=90,
    )
    latest = zip(known["channels"], records[max(records)]["sentences"], strict=True)
    listed = "".join(f"\n- {channel}: {sentence}" for channel, sentence in latest if sentence)
    text = f"**{layer}**, filters {known['channels']}. {_DESCRIPTION}\n{listed}".rstrip()
    return Picture(pixels=drawn, description=text)


def _verdict_key(records: Iterable[Mapping[str, Any]]) -> list[tuple[str, Colour]]:
    known = {verdict for record in records for verdict in record["verdicts"]}
    return [(verdict.value, verdict.colour) for verdict in Verdict if verdict in known]


def _cell(record: Mapping[str, Any], kind: str, place: int, *, last: bool) -> Cell:
    tile: Pixels = record[kind][place].numpy() if kind in record else blank(TILE, TILE)
    verdict = record["verdicts"][place]
    frame = Verdict(verdict).colour if verdict and kind in record else None  # none around an empty place
    need = record["importance"][place] if record.get("importance") else None
    judged = (f"{need:+.2g}", verdict) if verdict and need is not None else (verdict,) if verdict else ()
    lines = (*record["words"][place], *judged) if last else ()
    return Cell(pixels=tile, caption=lines, frame=frame, toned=len(judged))


def _enlarged(tile: Pixels, size: int) -> Pixels:
    factor = size / max(tile.shape[:2])
    height, width = (round(side * factor) for side in tile.shape[:2])
    return np.asarray(Image.fromarray(tile).resize((width, height), Image.Resampling.NEAREST))


def _record(
    classifier: Classifier, layer: str, channels: list[int], maps: Tensor, state: VisualState
) -> dict[str, Any]:
    """Return words, verdicts and importance of filters, and their tiles by kind, uint8 `(filters, h, w, 3)`."""
    health = state.store.get("health", {}).get(layer, {})
    verdicts, need = health.get("verdicts"), health.get("measures", {}).get("importance_signed")
    words = known_words(state, layer)
    record = {
        "verdicts": [verdicts[i] if verdicts else "" for i in channels],
        "importance": [] if need is None else need[channels].tolist(),
        "words": [list(words.captions[i]) if words else [] for i in channels],
        "sentences": [words.sentences[i] if words else "" for i in channels],
        "kernel": torch.from_numpy(kernel_tiles(kernels(classifier, layer)[channels], TILE)[0]),
        "response": torch.from_numpy(signed_maps(maps[channels], TILE)),
    }
    synthesis = state.store.get("synthesis", {}).get(layer, {})
    if synthesis.get("epoch") == state.epoch and set(channels) <= set(synthesis["channels"]):
        record["synthesis"] = synthesis["tiles"][[synthesis["channels"].index(channel) for channel in channels]]
    return record
