"""Stimuli drawn by code: gratings, edges, bars, blobs, curves, line ends, corners and crossings, in any colour."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

GRATING, EDGE, BAR, BLOB, SURFACE, CURVE, END, CORNER, CROSS = KINDS = (
    "grating",
    "edge",
    "bar",
    "blob",
    "surface",
    "curve",
    "line end",
    "corner",
    "crossing",
)
ANGLES = 16  # orientations of gratings, 11.25° apart
PHASES = 4  # and as many with the opposite sign
CHUNK = 512  # patterns that are drawn at once
HUES = ("red", "orange", "yellow", "lime", "green", "turquoise", "cyan", "blue", "blue", "violet", "magenta", "pink")
LUMA = (0.2126, 0.7152, 0.0722)  # weights of red, green and blue, ITU-R BT.709


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """A pattern of values in [−1, 1] on a background of 0, in a square window.

    Attributes:
        kind: one of `KINDS`.
        angle: of its lines in degrees, counter-clockwise from horizontal. An edge is positive at the left of its
            direction (0: above, 90: at the left); a curve bulges to there; a line end points along its direction.
        size: in pixels: the wavelength of a grating, the width of a bar, the diameter of a blob, the radius of a curve,
            the width of the lines of an end, corner or crossing.
        phase: of a grating, degrees at the centre of the window.
        across: offset from the centre of the window, to the left of its direction, pixels.
        along: offset along its direction, pixels.
        window: standard deviation of a Gaussian that the pattern is multiplied with, pixels; infinite for none.
        length: the window's extent along the lines as a multiple of that across; of a curve, the width of its line as a
            multiple of a third of the radius.
    """

    kind: str
    angle: float = 0.0
    size: float = 0.0
    phase: float = 0.0
    across: float = 0.0
    along: float = 0.0
    window: float = math.inf
    length: float = 1.0


def draw_patterns(patterns: Sequence[Pattern], side: int) -> Tensor:
    """Return patterns as `(patterns, side, side)`; lines are smooth over one pixel."""
    drawn = [_draw(patterns[i : i + CHUNK], side) for i in range(0, len(patterns), CHUNK)]
    return torch.cat(drawn or [torch.empty(0, side, side)])


def _draw(patterns: Sequence[Pattern], side: int) -> Tensor:
    columns = [[p.angle, p.size, p.phase, p.across, p.along, p.window, p.length] for p in patterns]
    angle, size, phase, across, along, window, length = torch.tensor(columns).T[:, :, None, None]
    at = torch.arange(side) - (side - 1) / 2
    x, y = at[None, None, :], -at[None, :, None]  # y points up
    angle = angle.deg2rad()
    u = y * angle.cos() - x * angle.sin() - across  # to the left of the direction
    v = x * angle.cos() + y * angle.sin() - along
    drawn = torch.empty(len(patterns), side, side)
    kinds = [p.kind for p in patterns]
    for kind in set(kinds):
        i = torch.tensor([k == kind for k in kinds])
        drawn[i] = _shape(kind, u[i], v[i], size[i], phase[i].deg2rad(), length[i])
    finite = window.isfinite()
    envelope = torch.exp(-0.5 * ((u / window).square() + (v / (window * length)).square()))
    return torch.where(finite, drawn * envelope, drawn)


def _shape(kind: str, u: Tensor, v: Tensor, size: Tensor, phase: Tensor, length: Tensor) -> Tensor:
    if kind == GRATING:
        return torch.sin(2 * math.pi * u / size + phase)
    if kind == EDGE:
        return 2 * _inside(u) - 1
    line = _inside(size / 2 - u.abs())
    if kind == BAR:
        return line
    if kind == BLOB:
        return _inside(size / 2 - torch.hypot(u, v))
    if kind == CURVE:  # an arc of 150°, whose middle is at the centre
        width = (length * size / 3).clamp_min(1.5)
        arc = _inside(width / 2 - (torch.hypot(u + size, v) - size).abs())
        return arc * _inside(u + 0.75 * size)
    if kind == END:
        return line * _inside(-v)
    if kind == CORNER:  # two lines from the centre, 45° at both sides of the direction, so that they point to it
        return _half_lines(u, v, size, (135.0, 225.0))
    if kind == CROSS:
        return torch.maximum(line, _inside(size / 2 - v.abs()))
    return torch.ones_like(u + v)


def _half_lines(u: Tensor, v: Tensor, width: Tensor, angles: Sequence[float]) -> Tensor:
    drawn = torch.zeros_like(u)
    for angle in angles:
        cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        forward, sideways = v * cos + u * sin, u * cos - v * sin
        drawn = torch.maximum(drawn, _inside(width / 2 - sideways.abs()) * _inside(forward + width / 2))
    return drawn


def _inside(distance: Tensor) -> Tensor:
    """Return the share of a pixel that lies inside a border at this distance, in [0, 1]."""
    return (distance + 0.5).clamp(0, 1)


def wavelengths(side: int) -> list[float]:
    """Return the wavelengths of gratings for a window of `side` pixels, from 2.2 pixels to twice the window."""
    return _geometric(2.2, max(2.0 * side, 5.0), 9)


def gratings(side: int) -> list[Pattern]:
    """Return gratings of all wavelengths, orientations and phases, in this order (the last varies fastest)."""
    return [
        Pattern(kind=GRATING, angle=180 * a / ANGLES, size=size, phase=180 * p / PHASES)
        for size in wavelengths(side)
        for a in range(ANGLES)
        for p in range(PHASES)
    ]


def local_patterns(side: int) -> list[Pattern]:
    """Return edges, bars, blobs, curves, line ends, corners, crossings and a surface for a window of `side` pixels."""
    shift = 0.22 * side
    lines = [180 * a / 12 for a in range(12)]
    directions = [45.0 * a for a in range(8)]
    widths = _geometric(max(1.0, side / 16), max(side / 4, 1.5), 3)
    small = [_at(p, x, y) for p in _blobs(side)[:2] for x in (-shift, 0, shift) for y in (-shift, 0, shift)]
    cross = ((0, 0), (-shift, 0), (shift, 0), (0, -shift), (0, shift))
    large = [_at(p, x, y) for p in _blobs(side)[2:] for x, y in cross]
    curves = [
        Pattern(kind=CURVE, angle=a, size=size, across=o)
        for a in directions
        for size in (side / 6, side / 3)
        for o in (0, shift)
    ]
    return [
        *(Pattern(kind=EDGE, angle=a, across=o) for a in lines for o in (-shift, 0, shift)),
        *(Pattern(kind=BAR, angle=a, size=w, across=o) for a in lines for w in widths for o in (-shift, 0, shift)),
        *small,
        *large,
        *curves,
        *(Pattern(kind=k, angle=a, size=w, along=o) for k in (END, CORNER) for a in directions for w in widths[:2]
          for o in (0, shift)),
        *(Pattern(kind=CROSS, angle=a, size=w) for a in (0.0, 22.5, 45.0, 67.5) for w in widths),
        Pattern(kind=SURFACE),
    ]  # fmt: skip


def _blobs(side: int) -> list[Pattern]:
    return [Pattern(kind=BLOB, size=size) for size in _geometric(max(2.0, side / 8), max(0.8 * side, 2.5), 5)]


def _at(pattern: Pattern, x: float, y: float) -> Pattern:
    return Pattern(kind=pattern.kind, size=pattern.size, across=y, along=x)


def _geometric(first: float, last: float, count: int) -> list[float]:
    return [first * (last / first) ** (i / (count - 1)) for i in range(count)]


def hue_direction(degrees: float) -> Tensor:
    """Return the direction in RGB from grey to a pure hue at the luminance of the grey, largest absolute entry 1.

    Args:
        degrees: 0 red, 60 yellow, 120 green, 180 cyan, 240 blue, 300 magenta. The opposite hue has the opposite
            direction.
    """
    sector = torch.tensor([degrees, degrees - 120, degrees + 120]).remainder(360) / 60
    pure = ((sector - 3).abs() - 1).clamp(0, 1)
    direction = pure - (pure * torch.tensor(LUMA)).sum()
    return direction / direction.abs().max()


def colour_axes(channels: int) -> Tensor:
    """Return the directions of colour in which patterns are shown, `(axes, channels)`, largest absolute entry 1.

    The first is from black to white; with three channels six hue axes at equal luminance follow, 30° apart.
    """
    grey = torch.ones(1, channels)
    return grey if channels != 3 else torch.cat([grey, torch.stack([hue_direction(30.0 * i) for i in range(6)])])


def hue_of(colour: Tensor) -> float:
    """Return the hue in degrees of a direction `(3,)` in RGB, whatever its luminance."""
    x = colour[0] - 0.5 * (colour[1] + colour[2])
    y = math.sqrt(0.75) * (colour[1] - colour[2])
    return float(torch.atan2(y, x).rad2deg().remainder(360))


def hue_name(degrees: float) -> str:
    """Return the name of a hue."""
    return HUES[round(degrees / 30) % 12]
