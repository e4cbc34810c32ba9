"""Tuning in words: one sentence and one short caption for each filter."""

import math

from filterscope.analysis.selectivity.measurement import PATCHES, LayerTuning
from filterscope.analysis.selectivity.stimuli import (
    BAR,
    BLOB,
    CORNER,
    CROSS,
    CURVE,
    EDGE,
    END,
    GRATING,
    SURFACE,
    hue_name,
)

EXPLAINED = 0.55  # fit from which a template explains a filter, if it also predicts the responses to noise
# Fit to noise from which it does: the larger of PREDICTS_NOISE and RANDOM / n for a receptive field of n × n pixels.
# At most a twentieth of kernels of random weights reaches it (`benchmarks/tuning.py --only noise`).
PREDICTS_NOISE, RANDOM = 0.15, 2.2
PREDICTS = 0.3  # fit from which it also predicts the responses to real images
COLOURED = 0.15  # share of colour from which it is named
PURE = 0.5  # share of colour from which light and dark are not named
SINGLE_OPPONENT = 0.25  # share of its best response that a single-opponent filter gives to a uniform surface
SIDES = ("right", "upper right", "top", "upper left", "left", "lower left", "bottom", "lower right")


def kind_of_filter(tuning: LayerTuning, i: int) -> str:
    """Return the kind of stimulus that explains filter `i`: one of `stimuli.KINDS`, `none` or `silent`."""
    if not tuning.responds[i]:
        return "silent"
    least = max(PREDICTS_NOISE, RANDOM / tuning.side)
    return tuning.templates[i].kind if tuning.fit[i] >= EXPLAINED and tuning.noise_fit[i] >= least else "none"


def predicts_real_images(tuning: LayerTuning, i: int) -> bool:
    """Return whether the template of filter `i` predicts its responses to real images; True if there were none."""
    return not (float(tuning.real_fit[i]) < PREDICTS or math.isinf(tuning.reach[i]))


def angle_of_filter(tuning: LayerTuning, i: int) -> float:
    """Return the orientation of filter `i` in degrees: that of its grating tuning where the template agrees."""
    rough, fine = tuning.templates[i].pattern.angle, float(tuning.grating.angle[i])
    near = (fine - rough + 90) % 180 - 90
    return fine if abs(near) <= 30 else rough


def colour_words(tuning: LayerTuning, i: int) -> tuple[str, str]:
    """Return names of the colour that filter `i` prefers and of the opposite: light orange and dark blue."""
    colour = tuning.colour[i] * tuning.polarity[i]
    light, dark = ("light", "dark") if float(colour.sum()) > 0 else ("dark", "light")
    share = float(tuning.colour_share[i])
    if len(colour) != 3 or share < COLOURED:
        return light, dark
    hue = float(tuning.hue[i]) + (0 if tuning.polarity[i] > 0 else 180)
    names = hue_name(hue), hue_name(hue + 180)
    return names if share >= PURE else (f"{light} {names[0]}", f"{dark} {names[1]}")


def has_colour(tuning: LayerTuning, i: int) -> bool:
    """Return whether filter `i` prefers a colour."""
    return tuning.colour.shape[1] == 3 and float(tuning.colour_share[i]) >= COLOURED


def opponency(tuning: LayerTuning, i: int) -> str:
    """Return `double` (reacts to contrasts of colour, not to uniform colour), `single`, or `none` without colour."""
    if not has_colour(tuning, i):
        return "none"
    return "single" if float(tuning.surface[i]) >= SINGLE_OPPONENT else "double"


def sentence(tuning: LayerTuning, i: int) -> str:
    """Return what filter `i` detects, in one sentence without a full stop."""
    kind = kind_of_filter(tuning, i)
    if kind == "silent":
        return "responds to none of the stimuli"
    reach = float(tuning.reach[i])
    unseen = f"; none of {PATCHES} real patches activates it" if math.isinf(reach) else ""
    if kind == "none":
        times = f"{reach:.1f}" if reach < 9.95 else f"{reach:.0f}"
        known = f"; the best stimulus activates it {times} times as strongly as the best of {PATCHES} real patches"
        similar = f"not explained by any stimulus: the most similar is {_description(tuning, i)}"
        return similar if math.isnan(reach) else f"{similar}{unseen or known}"
    doubt = "" if predicts_real_images(tuning, i) else unseen or "; does not predict its responses to real images"
    return f"{_description(tuning, i)}{doubt}"


def caption(tuning: LayerTuning, i: int) -> tuple[str, str]:
    """Return two short lines on filter `i`: shape and colour."""
    kind = kind_of_filter(tuning, i)
    if kind in ("none", "silent"):
        return ("unexplained" if kind == "none" else "silent", "")
    oriented = kind in (GRATING, EDGE, BAR)
    shape = f"{kind} {round(angle_of_filter(tuning, i)) % 180}°" if oriented else kind
    shape += "" if predicts_real_images(tuning, i) else "?"
    names = [name.split(" ", 1)[-1] for name in colour_words(tuning, i)]
    return shape, "–".join(names) if has_colour(tuning, i) else ""


def _description(tuning: LayerTuning, i: int) -> str:
    template, angle = tuning.templates[i], angle_of_filter(tuning, i)
    kind, any_phase = template.kind, bool(tuning.any_phase[i])
    first, second = colour_words(tuning, i)
    without = "" if has_colour(tuning, i) else ", no colour"
    if any_phase or kind == GRATING:
        name = "grating" if kind == GRATING else "line or edge"
        where = f"{_at(angle)}, wavelength {_pixels(tuning.grating.wavelength[i])}{', at any phase' * any_phase}"
        return f"{name} {where}{without or f', {first}–{second}'}"
    if kind == EDGE:
        return f"edge {_at(angle)}, {_sides(angle, template.pattern.angle, first, second)}{without}"
    if kind == BAR:
        return f"{first} bar on {second} {_at(angle)}, {_pixels(template.width)} wide{without}"
    if kind == SURFACE:
        return f"uniform {first} surface{without}"
    on = f" on {second}" if template.surround else ""
    if kind == BLOB:
        return f"{first} blob{on} of {_pixels(template.width)}{without}"
    direction = SIDES[round(template.pattern.angle / 45) % 8]
    if kind == CURVE:
        bulge = SIDES[round(template.pattern.angle / 45 + 2) % 8]
        return f"{first} curve{on}, bulging to the {bulge}, radius {_pixels(template.pattern.size)}{without}"
    if kind == END:
        return f"{first} line{on} that ends at the {direction}{without}"
    if kind == CORNER:
        return f"{first} corner{on}, pointing to the {direction}{without}"
    assert kind == CROSS
    turn = template.pattern.angle
    return f"crossing of {first} lines{on} at {turn:.0f}° and {turn + 90:.0f}°{without}"


def _at(angle: float) -> str:
    rounded = round(angle) % 180
    return {0: "at 0° (horizontal)", 90: "at 90° (vertical)"}.get(rounded, f"at {rounded}°")


def _sides(angle: float, rough: float, first: str, second: str) -> str:
    """Return where the two colours of an edge are; `first` is at the left of the direction `rough`, in [0, 180)."""
    if abs(angle - rough) > 90:  # 179° and 1° differ by 2°, but their left sides are opposite
        first, second = second, first
    side = round((angle + 90) / 45) % 8
    if side in (2, 6):
        upper, lower = (first, second) if side == 2 else (second, first)
        return f"{upper} above {lower}"
    if side == 4:
        return f"{first} left of {second}"
    return f"{first} at the {SIDES[side]}, {second} at the {SIDES[(side + 4) % 8]}"


def _pixels(size: object) -> str:
    value = float(size)  # type: ignore[arg-type]
    return f"{value:.1f} px" if value < 9.95 else f"{value:.0f} px"
