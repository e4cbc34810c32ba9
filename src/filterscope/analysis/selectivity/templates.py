"""Templates: ideal detectors of a grating, an edge, a blob …, and which of them a filter behaves like."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

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
    Pattern,
    draw_patterns,
    local_patterns,
    wavelengths,
)

# A curve, end, corner or crossing must leave at most this share of what the best simpler template leaves unexplained.
RESIDUAL = 0.98
CHUNK = 1024
THRESHOLDS = (0.0, 0.3)  # of a detector, as shares of its largest response
WINDOWS = (0.2, 0.35, 0.6, 1.0, 1.6)  # standard deviations of the Gaussian windows of gratings, in wavelengths
FULL_WIDTH = 2.355  # of a Gaussian at half its height, in standard deviations
RING = 1.8  # size of a spot's surround, as a multiple of its own
LEAST_NORM = 1e-3  # of a template that is in the receptive field, as a share of the largest possible
LENGTHS = (1.0, 2.5)  # of the windows along the lines, as multiples of their standard deviation across


@dataclass(frozen=True, kw_only=True)
class Template:
    """An ideal detector.

    Attributes:
        kind: of what it detects, one of `stimuli.KINDS`. A grating of which the window leaves one or two lines is an
            edge or a bar.
        pattern: its weights.
        surround: what is subtracted from them: nothing, their mean over the receptive field (`wide`), or a spot that is
            larger by `RING` (`ring`).
    """

    kind: str
    pattern: Pattern
    surround: Literal["", "wide", "ring"] = ""

    @property
    def width(self) -> float:
        """Width of a bar, edge or line, diameter of a blob, in pixels."""
        return self.pattern.size / 2 if self.pattern.kind == GRATING else self.pattern.size


@dataclass(frozen=True, kw_only=True)
class Templates:
    """All detectors for a receptive field. Their weights are drawn when they are needed: together they take gigabytes.

    Attributes:
        side: of the receptive field, pixels.
        each: what the templates are.
        energies: indices of templates, in rows that begin with the one they are named after. A detector that does not
            care about phase responds with the root of the sum of their squared products: a pair of gratings a quarter
            of a wavelength apart, or such pairs at all offsets.
    """

    side: int
    each: Sequence[Template]
    energies: Sequence[Tensor]

    def weights(self, indices: Sequence[int]) -> Tensor:
        """Return the weights of some templates, `(n, side, side)`, of unit norm, or 0 outside the receptive field."""
        chosen = [self.each[i] for i in indices]
        weights = draw_patterns([template.pattern for template in chosen], self.side).flatten(1)
        wide = torch.tensor([template.surround == "wide" for template in chosen])
        weights[wide] -= weights[wide].mean(1, keepdim=True)
        rings = [i for i, template in enumerate(chosen) if template.surround == "ring"]
        if rings:
            inner = [chosen[i].pattern for i in rings]
            larger = [replace(p, size=RING * p.size, window=RING * p.window) for p in inner]
            weights[rings] -= draw_patterns(larger, self.side).flatten(1) / RING**2
        norm = weights.norm(dim=1, keepdim=True)
        seen = norm > LEAST_NORM * self.side
        return torch.where(seen, weights / norm.clamp_min(1e-12), 0.0).view(-1, self.side, self.side)

    def products(self, images: Tensor) -> Tensor:
        """Return the scalar products of all templates with images `(N, side, side)`, as `(templates, N)`."""
        indices = range(len(self.each))
        parts = [indices[start : start + CHUNK] for start in range(0, len(indices), CHUNK)]
        return torch.cat([self.weights(part).flatten(1) @ images.flatten(1).T for part in parts])


@dataclass(frozen=True, kw_only=True)
class TemplateFit:
    """The template that each filter behaves like most.

    Attributes:
        template: its index, `(filters,)`.
        polarity: 1, or −1 where the filter prefers the template's opposite.
        energy: indices of the templates whose energy it is, whatever the phase; None for a linear template.
        fit: correlation between the filter's and the template's responses to all stimuli.
    """

    template: Tensor
    polarity: Tensor
    energy: Sequence[Tensor | None]
    fit: Tensor

    @property
    def any_phase(self) -> Tensor:
        """Whether each filter ignores the phase of its grating."""
        return torch.tensor([energy is not None for energy in self.energy])


def make_templates(side: int) -> Templates:
    """Return the templates for a receptive field of `side` pixels."""
    shapes = [replace(p, window=side / 3) if p.kind == EDGE else p for p in local_patterns(side)]
    shapes = [p for p in shapes if p.kind != CURVE] + _curves(side)
    others = [Template(kind=p.kind, pattern=p, surround=s) for s in ("", "wide") for p in shapes]
    each = [*_windowed_gratings(side), *_spots(side), *others]
    return Templates(side=side, each=each, energies=_energies(each))


def _curves(side: int) -> list[Pattern]:
    radii = [side * share for share in (0.17, 0.21, 0.26, 0.32, 0.4)]
    offsets = [0.065 * side * k for k in (-2, -1, 0, 1, 2)]
    return [
        Pattern(kind=CURVE, angle=22.5 * a, size=radius, across=across + 0.3 * radius, along=along, length=width)
        for a, radius, across, along, width in product(range(16), radii, offsets, offsets, (1.0, 1.8))
        if width == 1 or radius > radii[1]  # a small and thick arc is a spot
    ]


def _energies(each: Sequence[Template]) -> list[Tensor]:
    """Return the pairs of gratings, and the pairs at all offsets together."""
    index = {t.pattern: i for i, t in enumerate(each) if t.pattern.kind == GRATING and not t.surround}
    pairs = {p: (i, index.get(replace(p, phase=90.0))) for p, i in index.items() if p.phase == 0}
    complete = {p: [first, second] for p, (first, second) in pairs.items() if second is not None}
    pooled: dict[Pattern, list[int]] = {}
    for pattern, pair in sorted(complete.items(), key=lambda item: abs(item[0].across)):
        pooled.setdefault(replace(pattern, across=0.0), []).extend(pair)
    return [torch.tensor(group) for group in (*complete.values(), *pooled.values())]


def _windowed_gratings(side: int) -> Iterator[Template]:
    for ratio, size in product(WINDOWS, wavelengths(side)):
        if not 0.6 <= ratio * size <= side / 2:
            continue
        phases = (0.0, 90.0) if ratio < 0.5 else (0.0, 45.0, 90.0, 135.0)
        offsets = [0.14 * side * k for k in (-2, -1, 0, 1, 2)]
        for angle, across, phase, length in product(range(0, 180, 15), offsets, phases, LENGTHS):
            kind = GRATING if ratio >= 1 else EDGE if phase == 0 else BAR
            if kind == BAR and (size > side or (ratio == WINDOWS[0] and length == 1)):
                continue  # only one of its borders would be visible, or it would be a spot
            pattern = Pattern(
                kind=GRATING, angle=angle, size=size, phase=phase, across=across, window=ratio * size, length=length
            )
            for surround in ("", "wide") if kind == BAR and ratio < 0.5 else ("",):
                yield Template(kind=kind, pattern=pattern, surround=surround)


def _spots(side: int) -> Iterator[Template]:
    widths = [0.5 * 1.25**k for k in range(24) if 0.5 * 1.25**k < side / 2.5]  # standard deviations
    positions = [0.065 * side * k for k in range(-4, 5)]
    for across, along, window in product(positions, positions, widths):
        pattern = Pattern(kind=SURFACE, size=FULL_WIDTH * window, across=across, along=along, window=window)
        for surround in ("", "wide", "ring"):
            yield Template(kind=BLOB, pattern=pattern, surround=surround)


def fit_templates(templates: Templates, drawn: Tensor, responses: Tensor, *, complex_cell: Tensor) -> TemplateFit:
    """Return the template whose responses to the stimuli correlate most with those of each filter.

    Args:
        templates: for the receptive field's side.
        drawn: the stimuli, `(P, side, side)`.
        responses: of the filters to the stimuli in one colour and its opposite, `(filters, P, 2)`.
        complex_cell: whether a filter ignores phase; the others are compared with linear templates only.
    """
    wanted = _normalized(responses.transpose(1, 2).flatten(1))
    flipped = _normalized(responses.flip(2).transpose(1, 2).flatten(1))
    products = templates.products(drawn)
    scores = torch.full((len(wanted), len(products)), -1.0)
    signs = torch.ones_like(scores)
    for start in range(0, len(products), CHUNK):
        part = slice(start, start + CHUNK)
        for threshold in THRESHOLDS:
            least = threshold * products[part].abs().amax(1, keepdim=True)
            predicted = _normalized(torch.cat([products[part] - least, -products[part] - least], dim=1).relu_()).T
            for sign, target in ((1.0, wanted), (-1.0, flipped)):
                score = target @ predicted
                better = score > scores[:, part]
                scores[:, part] = torch.where(better, score, scores[:, part])
                signs[:, part] = torch.where(better, sign, signs[:, part])
    simple = torch.tensor([template.kind not in (CURVE, END, CORNER, CROSS) for template in templates.each])
    unexplained = 1 - scores.clamp_min(0).square()
    template = torch.where(simple, unexplained, unexplained / RESIDUAL).argmin(dim=1)
    fit, polarity = (each.gather(1, template[:, None])[:, 0] for each in (scores, signs))
    energy: list[Tensor | None] = [None] * len(wanted)
    if bool(complex_cell.any()) and len(templates.energies):
        energies = torch.stack([products[group].square().sum(0).sqrt() for group in templates.energies])
        score, best = (wanted @ _normalized(energies.repeat(1, 2)).T).max(dim=1)
        for i in (complex_cell & (score > fit)).nonzero().flatten().tolist():
            energy[i] = templates.energies[int(best[i])]
            template[i], polarity[i], fit[i] = templates.energies[int(best[i])][0], 1.0, score[i]
    return TemplateFit(template=template, polarity=polarity, energy=energy, fit=fit)


def _normalized(rows: Tensor) -> Tensor:
    return F.normalize(rows - rows.mean(1, keepdim=True), dim=1)
