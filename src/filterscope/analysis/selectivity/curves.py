"""Tuning curves of filters for gratings: orientation, wavelength, phase and colour."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from filterscope.analysis.selectivity.stimuli import ANGLES, PHASES, wavelengths


@dataclass(frozen=True, kw_only=True)
class GratingTuning:
    """What the responses of a layer's filters to gratings say; tensors with one entry per filter.

    Attributes:
        angle: preferred orientation of the lines in degrees, counter-clockwise from horizontal, in [0, 180).
        bandwidth: half the width of the orientation curve at half its height, degrees; NaN if it never falls so low.
        selectivity: orientation selectivity index, 1 − circular variance (Ringach et al. 2002), in [0, 1].
        wavelength: preferred, in pixels.
        octaves: full width of the wavelength curve at half its height; NaN if it falls so low at one side at most.
        modulation: F1/F0 of the preferred grating over its phases (Skottun et al. 1991): below 1 for complex cells.
        curve: responses by orientation at the preferred wavelength, `(filters, ANGLES)`.
    """

    angle: Tensor
    bandwidth: Tensor
    selectivity: Tensor
    wavelength: Tensor
    octaves: Tensor
    modulation: Tensor
    curve: Tensor


def grating_tuning(responses: Tensor, baseline: Tensor, side: int) -> GratingTuning:
    """Return the tuning for gratings in one colour.

    Args:
        responses: to `gratings(side)` in one colour and its opposite, `(filters, gratings, 2)`.
        baseline: to mid-grey, `(filters,)`.
        side: of the window that the gratings fill, pixels.
    """
    sizes = torch.tensor(wavelengths(side))
    over_phases = responses.view(-1, len(sizes), ANGLES, PHASES, 2).transpose(3, 4).flatten(3)
    mean, first = over_phases.mean(-1), torch.fft.rfft(over_phases)[..., 1].abs() * 2 / over_phases.shape[-1]
    # The mean over phases and its first harmonic together follow a simple and a complex cell's contrast smoothly; the
    # largest of eight phases would depend on how they meet the filter's own phase.
    strength = (mean - baseline[:, None, None]).clamp_min(0) + first
    filters = torch.arange(len(strength))
    best = strength.flatten(1).argmax(1)
    size_at, angle_at = best // ANGLES, best % ANGLES
    frequency, angle = _peaks(strength, sizes, size_at, angle_at)
    curve = strength[filters, size_at]
    directions = torch.polar(torch.ones(ANGLES), 2 * math.pi * torch.arange(ANGLES) / ANGLES)
    selectivity = (curve * directions).sum(1).abs() / curve.sum(1).clamp_min(1e-12)
    modulation = first[filters, size_at, angle_at] / (mean[filters, size_at, angle_at] - baseline).clamp_min(1e-12)
    octaves = _width(strength[filters, :, angle_at], size_at) * float(torch.log2(sizes[1] / sizes[0]))
    rolled = curve.gather(1, (angle_at[:, None] + torch.arange(ANGLES) - ANGLES // 2) % ANGLES)
    bandwidth = _width(rolled, torch.full_like(angle_at, ANGLES // 2)) * 180 / ANGLES / 2
    return GratingTuning(
        angle=angle,
        bandwidth=bandwidth,
        selectivity=selectivity,
        wavelength=1 / frequency,
        octaves=octaves,
        modulation=modulation.clamp_max(2.0),
        curve=curve,
    )


def _peaks(strength: Tensor, sizes: Tensor, size_at: Tensor, angle_at: Tensor) -> tuple[Tensor, Tensor]:
    """Return frequency and angle of each filter's peak, between the grid's points.

    The logarithm of a Gabor filter's response is a quadratic function of the grating's frequency vector, so one is
    fitted to the nine points around the largest response.
    """
    frequencies = 1 / sizes
    peaks = []
    for i, (s, a) in enumerate(zip(size_at.tolist(), angle_at.tolist(), strict=True)):
        rows = torch.arange(max(s - 1, 0), min(s + 2, len(sizes)))
        around = torch.arange(a - 1, a + 2)
        f, turn = torch.meshgrid(frequencies[rows] / frequencies[s], (around - a) * math.pi / ANGLES, indexing="ij")
        values = strength[i, rows][:, around % ANGLES]
        peaks.append(_quadratic_peak((f * turn.cos()).flatten() - 1, (f * turn.sin()).flatten(), values.flatten()))
    at_x, at_y = torch.tensor(peaks).T
    frequency = frequencies[size_at] * torch.hypot(1 + at_x, at_y)
    return frequency, ((angle_at / ANGLES) * 180 + torch.atan2(at_y, 1 + at_x).rad2deg()).remainder(180)


def _quadratic_peak(x: Tensor, y: Tensor, values: Tensor) -> tuple[float, float]:
    """Return where exp of a quadratic function fitted to values at points around (0, 0) has its maximum.

    It is kept inside the points. With too few values, or without a maximum, each direction is fitted alone.
    """
    used = values > 0.01 * values.max()
    terms = torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y], dim=1)[used].double()
    weights = values[used].double()
    fitted = torch.linalg.lstsq(terms * weights[:, None], (weights.log() * weights)[:, None]).solution.flatten()
    _, bx, by, cxx, cxy, cyy = fitted.tolist()
    determinant = 4 * cxx * cyy - cxy**2
    if int(used.sum()) >= 6 and determinant > 0 and cxx < 0:
        at_x, at_y = (cxy * by - 2 * cyy * bx) / determinant, (cxy * bx - 2 * cxx * by) / determinant
    else:
        at_x, at_y = _parabola_peak(x[y == 0], values[y == 0]), _parabola_peak(y[x.abs() < 0.1], values[x.abs() < 0.1])
    return min(max(at_x, float(x.min())), float(x.max())), min(max(at_y, float(y.min())), float(y.max()))


def _parabola_peak(x: Tensor, values: Tensor) -> float:
    """Return where a parabola through the logarithms of three or more values has its maximum, 0 if it has none."""
    if len(x) < 3 or float(values.max()) <= 0:
        return 0.0
    logs = values.clamp_min(0.01 * float(values.max())).double().log()
    powers = torch.stack([torch.ones_like(x), x, x * x], dim=1).double()
    _, slope, bend = torch.linalg.lstsq(powers, logs[:, None]).solution.flatten().tolist()
    return -slope / (2 * bend) if bend < 0 else 0.0


def _width(curves: Tensor, peak: Tensor) -> Tensor:
    """Return the full width of curves at half their peak, in steps; NaN where a curve stays above at one side."""
    found = []
    for curve, at in zip(curves.tolist(), peak.tolist(), strict=True):
        half, sides = curve[at] / 2, []
        for step in (-1, 1):
            k = at
            while 0 <= k + step < len(curve) and curve[k + step] > half:
                k += step
            if not 0 <= k + step < len(curve):
                sides.append(math.nan)
                continue
            sides.append(abs(k - at) + (curve[k] - half) / max(curve[k] - curve[k + step], 1e-12))
        found.append(sum(sides))
    return torch.tensor(found)
