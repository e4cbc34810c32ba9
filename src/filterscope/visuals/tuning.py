"""Draw what each filter of the first layers is tuned to, and say it in one sentence per filter."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image, ImageDraw
from pydantic import PositiveInt
from torch import Tensor

from filterscope.analysis.selectivity import sentences
from filterscope.analysis.selectivity.measurement import LayerTuning, measure_tuning
from filterscope.analysis.selectivity.stimuli import CROSS, CURVE, END, KINDS, hue_name
from filterscope.models.classifier import Classifier
from filterscope.models.layers import channels_of, convolutions
from filterscope.registry import register
from filterscope.visuals.drawing.grid import (
    BACKGROUND,
    BLUE,
    EDGE,
    FAINT,
    INK,
    ORANGE,
    Cell,
    Colour,
    Pixels,
    grid,
    tile_size,
)
from filterscope.visuals.drawing.text import draw_text
from filterscope.visuals.drawing.tiles import photo
from filterscope.visuals.filter_selection import convolution_names
from filterscope.visuals.filter_words import remember_words
from filterscope.visuals.output.outputs import Output, Picture, Row, Table
from filterscope.visuals.visual import ChannelChoice, Examples, LayerChoice, Visual, VisualState, layer_note

FIRST_LAYERS = 2  # convolutions that are measured by default
COLUMNS = 4
WHEEL, SPOT = 464, 34  # pixels of a wheel and of a filter on it

_HOW = (
    "Gratings, edges, bars, blobs, curves, line ends, corners and crossings, light, dark and in hues of equal "
    "luminance, were shown in the filter's receptive field. The filter's responses to all of them are compared with "
    "those of ideal detectors; the **fit** is the correlation with the most similar one. It explains the filter if it "
    "also predicts the responses to images of noise; the real fit is the correlation on patches of real images."
)
_FILTERS_TEXT = (
    "Left: how strongly the filter responds to gratings of each orientation, at the best wavelength; the orientation "
    "is that of the lines. Right: the stimulus that activates it most. Blue frame: an ideal detector explains the "
    "filter; orange (and a question mark): it explains the responses to stimuli, but not those to real images; grey: "
    "none does."
)
_WHEEL_TEXT = (
    "Each filter is shown by the stimulus that activates it most. Left: its preferred orientation, and further out the "
    "more it depends on orientation. Right: its preferred hue, and further out the more colour counts against light "
    "and dark."
)
_COLUMNS: Mapping[str, str] = {
    "layer": "",
    "filter": "",
    "kind": "of the detector that explains it",
    "sentence": "",
    "fit": "correlation with the detector's responses to the stimuli",
    "noise fit": "the same on images of noise",
    "real fit": "the same on patches of real images",
    "reach": "response to the best stimulus ÷ to the best patch of real images",
    "orientation": "of the lines, degrees counter-clockwise from horizontal",
    "bandwidth": "half width at half height, degrees",
    "orientation selectivity": "1 − circular variance (Ringach et al. 2002)",
    "wavelength": "of the best grating, pixels",
    "octaves": "full width of the wavelength curve at half height",
    "F1/F0": "modulation by the grating's phase, below 1 in complex cells (Skottun et al. 1991)",
    "hue": "degrees, 0 red, 120 green, 240 blue",
    "colour share": "of the preferred colour, without luminance",
    "colour selectivity": "1 − response to the best grey stimulus ÷ to the best stimulus",
    "colour selectivity index": "Rafegas and Vanrell 2018: 1 − responses to grey versions of the top patches ÷ to them",
    "opponency": "single or double (no response to uniform colour)",
    "blob size": "preferred, pixels",
    "curve radius": "preferred, pixels",
    "curvature index": "curve against bar, −1 to 1",
    "end index": "line end against bar",
    "crossing index": "crossing against bar",
    **{f"best {kind}": "response ÷ to the best stimulus" for kind in KINDS},
}


@register("visual", "tuning")
@dataclass(frozen=True, kw_only=True)
class Tuning(Visual):
    """Measure and draw what filters are tuned to: `tuning/<layer>`, `tuning/<layer>/overview` and the table `tuning`.

    The sentences are also shown by the visuals `filters`, `timeline` and `gallery`.

    Attributes:
        layers: names of convolutions; None: the first two.
        channels: the number of filters drawn, counted from the first, a list of indices, or None for all; the table
            holds all.
        images: real images that the sentences are tested on; in training the examples alone.
        seed: of the patches of these images.
    """

    needs_convolutions: ClassVar[bool] = True
    priority: ClassVar[int] = -1

    layers: LayerChoice = None
    channels: ChannelChoice = 32
    images: PositiveInt = 64
    seed: int = 0

    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> dict[str, Output]:
        """Return two pictures of every layer that must be drawn, and the table of all layers.

        Raises:
            UserError: a layer is no convolution, or a channel does not exist.
        """
        shown: dict[str, Output] = {}
        rows: list[Row] = []
        real = examples.images if state.epoch is not None and not state.ended else examples.sample(self.images).images
        for layer in tuned_layers(classifier, self.layers):
            tag = f"tuning/{layer}"
            channels = channels_of(classifier.layers, layer, self.channels)
            note = layer_note(classifier, layer, tag, state)
            if note is not None:
                tuning = find_tuning_words(classifier, layer, real, state, seed=self.seed)
                record = state.store["tuning"][layer]
                shown[tag] = draw_filter_tuning(tuning, channels, record, layer=layer, header_note=note)
                shown[f"{tag}/overview"] = draw_wheels(tuning, layer=layer, header_note=note)
            rows += state.store["tuning"][layer]["rows"]
        columns = ", ".join(f"*{name}*: {text}" for name, text in _COLUMNS.items() if text)
        shown["tuning"] = Table(columns=tuple(_COLUMNS), rows=tuple(rows), description=f"{_HOW} {columns}.")
        return shown


def find_tuning_words(
    classifier: Classifier, layer: str, real: Tensor, state: VisualState, *, seed: int
) -> LayerTuning:
    """Return the tuning of a layer, and store its table rows and the words on its filters."""
    tuning = measure_tuning(classifier, layer, real, seed=seed)
    record = state.store.setdefault("tuning", {})[layer] = tuning_record(tuning, layer)
    said = zip(record["sentences"], record["fits"], strict=True)
    with_fit = [f"{text} (fit {fit:.2f})" for text, fit in said]
    remember_words(state, layer, source="tuning", sentences=with_fit, captions=record["captions"])
    return tuning


def tuned_layers(classifier: Classifier, layers: Sequence[str] | None) -> list[str]:
    """Return the full names of the given layers, or of the first two convolutions."""
    return convolution_names(
        classifier, layers if layers is not None else convolutions(classifier.layers)[:FIRST_LAYERS]
    )


def tuning_record(tuning: LayerTuning, layer: str) -> dict[str, Any]:
    """Return `sentences`, short `captions`, `fits` and table `rows` of a layer's filters as plain data."""
    filters = range(len(tuning.fit))
    rows = []
    for i in filters:
        values = (
            tuning.fit, tuning.noise_fit, tuning.real_fit, tuning.reach, tuning.grating.angle, tuning.grating.bandwidth,
            tuning.grating.selectivity, tuning.grating.wavelength, tuning.grating.octaves, tuning.grating.modulation,
            tuning.hue, tuning.colour_share, tuning.colour_selectivity, tuning.real_colour_selectivity,
        )  # fmt: skip
        more = (tuning.blob_size, tuning.curve_radius, *map(tuning.against_bars, (CURVE, END, CROSS)))
        rows.append(
            (
                layer,
                i,
                sentences.kind_of_filter(tuning, i),
                sentences.sentence(tuning, i),
                *(_number(each[i]) for each in values),
                sentences.opponency(tuning, i),
                *(_number(each[i]) for each in more),
                *(_number(value) for value in tuning.by_kind[i]),
            )
        )
    return {
        "sentences": [sentences.sentence(tuning, i) for i in filters],
        "captions": [list(sentences.caption(tuning, i)) for i in filters],
        "fits": [round(float(fit), 3) for fit in tuning.fit],
        "rows": rows,
    }


def draw_filter_tuning(
    tuning: LayerTuning, channels: Sequence[int], record: Mapping[str, Any], *, layer: str, header_note: str = ""
) -> Picture:
    """Draw a polar plot and the best stimulus of filters."""
    side = tile_size(COLUMNS) // 2 - 3
    cells = []
    for i in channels:
        first, second = record["captions"][i]
        colour = _frame(tuning, i)
        curve = tuning.grating.curve[i] / tuning.grating.curve[i].max().clamp_min(1e-12)
        pair = np.full((side, 2 * side + 6, 3), BACKGROUND, np.uint8)
        pair[:, :side] = _polar(curve, side, colour)
        stimulus = photo(tuning.best[i], side)
        top, left = ((side - n) // 2 for n in stimulus.shape[:2])
        pair[top : top + stimulus.shape[0], side + 6 + left : side + 6 + left + stimulus.shape[1]] = stimulus
        cells.append(Cell(pixels=pair, caption=(f"{i} {first}", second), toned=0, frame=colour))
    total = len(tuning.fit)
    frames = [_frame(tuning, i) for i in range(total)]
    names = ((BLUE, "explained"), (ORANGE, "explained on stimuli only"), (FAINT, "not explained"))
    pixels = grid(
        cells,
        columns=COLUMNS,
        title=layer,
        header_note=header_note,
        notes=[f"tuning of {len(channels)} of {total} filters: response by orientation, and the best stimulus"],
        key=[(f"{frames.count(colour)} {name}", colour) for colour, name in names if colour in frames],
    )
    listed = "".join(f"\n- {i}: {record['sentences'][i]} (fit {record['fits'][i]:.2f})" for i in channels)
    return Picture(pixels=pixels, description=f"**{layer}**. {_FILTERS_TEXT} {_HOW}\n{listed}")


def draw_wheels(tuning: LayerTuning, *, layer: str, header_note: str = "") -> Picture:
    """Draw all filters of a layer on a wheel of orientation and, for colour images, on a wheel of hue."""
    outward = tuning.grating.selectivity.clamp(0, 1).tolist()
    turns = tuning.grating.angle.tolist()
    order = sorted(range(len(turns)), key=lambda i: float(tuning.fit[i]))
    used = [i for i in order if sentences.kind_of_filter(tuning, i) not in ("none", "silent")]
    spots = [photo(each, SPOT) for each in tuning.best]
    lines = [(angle, f"{angle}°") for angle in (0, 45, 90, 135, 180)]
    wheels = [Cell(pixels=_wheel(turns, outward, used, spots, lines, half=True), caption=("orientation",))]
    if tuning.colour.shape[1] == 3:
        hues = [float(h) + (0 if tuning.polarity[i] > 0 else 180) for i, h in enumerate(tuning.hue)]
        names = [(angle, hue_name(angle)) for angle in range(0, 360, 60)]
        wheels.append(Cell(pixels=_wheel(hues, tuning.colour_share.tolist(), used, spots, names), caption=("colour",)))
    note = f"{len(used)} of {len(turns)} filters; the others are not explained by any stimulus"
    pixels = grid(wheels, columns=2, title=layer, header_note=header_note, notes=[note])
    return Picture(pixels=pixels, description=f"**{layer}**. {_WHEEL_TEXT} {_HOW}")


def _number(value: Tensor) -> float | str:
    number = float(value)
    return round(number, 4) if math.isfinite(number) else ""


def _frame(tuning: LayerTuning, i: int) -> Colour:
    if sentences.kind_of_filter(tuning, i) in ("none", "silent"):
        return FAINT
    return BLUE if sentences.predicts_real_images(tuning, i) else ORANGE


def _polar(curve: Tensor, side: int, colour: Colour) -> Pixels:
    """Return the responses by orientation, `(angles,)` in [0, 1], as a closed curve of two equal halves."""
    image = Image.new("RGB", (2 * side, 2 * side), BACKGROUND)
    draw = ImageDraw.Draw(image)
    draw.ellipse((4, 4, 2 * side - 5, 2 * side - 5), outline=EDGE, width=2)
    turns = torch.arange(2 * len(curve)) * math.pi / len(curve)
    radius = curve.repeat(2) * (side - 6)
    points = list(zip((side + radius * turns.cos()).tolist(), (side - radius * turns.sin()).tolist(), strict=True))
    draw.polygon(points, fill=tuple(c // 2 for c in colour), outline=colour, width=5)
    return np.asarray(image.resize((side, side), Image.Resampling.BOX))


def _wheel(
    turns: Sequence[float],
    outward: Sequence[float],
    used: Sequence[int],
    spots: Sequence[Pixels],
    labels: Sequence[tuple[int, str]],
    *,
    half: bool = False,
) -> Pixels:
    """Return spots at angles in degrees and distances in [0, 1] from the centre; `half`: of the upper half only."""
    centre, radius = WHEEL // 2, WHEEL // 2 - 62
    image = Image.new("RGB", (WHEEL, WHEEL), BACKGROUND)
    draw = ImageDraw.Draw(image)
    base = centre + (radius // 2 if half else 0)
    for share in (0.5, 1.0):
        r = round(share * radius)
        draw.arc((centre - r, base - r, centre + r, base + r), 180 if half else 0, 360, fill=EDGE, width=2)

    def place(angle: float, distance: float) -> tuple[float, float]:
        turn = math.radians(angle)
        return centre + distance * math.cos(turn), base - distance * math.sin(turn)

    for angle, text in labels:
        draw.line((place(angle, 0), place(angle, radius)), fill=EDGE, width=1)
        draw_text(draw, place(angle, radius + 32), text, size=24, colour=INK, anchor="mm")
    for i in used:
        x, y = place(turns[i], outward[i] * radius)
        image.paste(Image.fromarray(spots[i]), (round(x - SPOT / 2), round(y - SPOT / 2)))
    return np.asarray(image)
