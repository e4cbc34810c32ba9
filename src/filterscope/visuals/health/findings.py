"""What was found of a layer's filters, as plain data: numbers, a row per filter, a row for the layer."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from filterscope.analysis.health.activity import Activity
from filterscope.analysis.health.classes import ClassInformation
from filterscope.analysis.health.judgement import Judgement
from filterscope.analysis.health.similarity import Drift, Duplicates
from filterscope.analysis.health.structure import Structure
from filterscope.analysis.health.verdict import Verdict
from filterscope.visuals.output.outputs import Output, Table

COLUMNS = (
    *("layer", "filter", "verdict", "reason", "concentration", "z", "p", "apoz", "dormancy", "eta_squared", "p_class"),
    *("selectivity", "cosine", "duplicate_of", "drift_cosine", "drift_distance"),
)


@dataclass(frozen=True, kw_only=True)
class MeasureInfo:
    """A measure of a filter: its key in tables, its title, and a sentence that explains its values."""

    key: str
    title: str
    description: str


MEASURES = tuple(
    MeasureInfo(key=key, title=title, description=description)
    for key, title, description in (
        ("activation", "activation", "Mean output as a multiple of the mean over the layer's filters; 0 if silent."),
        ("apoz", "share of zeros", "Share of outputs that are zero after the ReLU (APoZ); 1 for a dead filter."),
        (
            "z",
            "structure",
            "Spatial structure of the kernel, in standard deviations from permuted weights.",
        ),
        ("p", "p of structure", "Probability that randomly permuted weights have as much structure."),
        (
            "eta_squared",
            "class information",
            "Share of its responses' variance that the class explains (η²), 0 to 1.",
        ),
        (
            "selectivity",
            "class selectivity",
            "0 if it responds to all classes alike, 1 if to one class only.",
        ),
        ("cosine", "nearest kernel", "Largest absolute cosine to another kernel of the layer; 1 for a copy."),
        (
            "drift_distance",
            "drift",
            "Change of the kernel since the start, relative to its norm; 0 if frozen.",
        ),
    )
)


def filter_facts(about: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """Return verdict, reason and measures of each filter as plain data; empty texts if the layer was not judged."""
    if "rows" not in about:
        return [{"verdict": "", "reason": ""} for _ in range(count)]
    names = ["activation" if name == "dormancy" else name for name in COLUMNS[4:]]
    rows = zip(about["verdicts"], about["reasons"], cells(about), strict=True)
    return [
        {"verdict": verdict, "reason": reason, **{k: rounded(v) for k, v in zip(names, row, strict=True)}}
        for verdict, reason, row in rows
    ]


def rounded(value: float, digits: int = 4) -> float | None:
    """Return a number with so many significant digits, None for NaN and infinity."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


Told = Mapping[str, Mapping[str, Any]]
"""By layer, what `told` returns."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that is known of one layer."""

    structure: Structure
    entropy: float
    activity: Activity
    classes: ClassInformation | None
    duplicates: Duplicates
    drift: Drift
    cka: float | None
    judgements: list[Judgement]


def told(found: Findings) -> dict[str, Any]:
    """Return what is said of a layer, in what a checkpoint may hold.

    `verdicts`, `reasons` and `z` have an entry per filter, `numbers` has one per measure, `rows` holds what `cells`
    returns as a tensor (writing thousands of numbers one by one takes a checkpoint long), `dead` counts, `best` and
    `worst` name filters, `testable` says whether the kernels are large enough to tell structure from noise.
    """
    best, worst = _extremes(found)
    return {
        "verdicts": [each.verdict.value for each in found.judgements],
        "reasons": [each.reason for each in found.judgements],
        "z": found.structure.z,
        "testable": found.structure.testable,
        "images": found.activity.images,
        "dead": int(found.activity.dead.sum()),
        "numbers": _measures(found),
        "rows": _measured(found),
        "best": best,
        "worst": worst,
    }


def cells(about: Mapping[str, Any]) -> list[tuple[float | int, ...]]:
    """Return each filter's cells behind layer, number, verdict and reason, from what `told` returned of a layer."""
    columns = torch.as_tensor(about["rows"], dtype=torch.float64).T.tolist()
    of = COLUMNS[4:].index("duplicate_of")
    columns[of] = [int(other) for other in columns[of]]
    return list(zip(*columns, strict=True))


def numbers(said: Told) -> dict[str, Output]:
    """Return `health/<measure>/<layer>` for every layer, and each verdict's share of all filters."""
    by_measure: dict[str, Output] = {
        f"health/{measure}/{layer}": value
        for layer, about in said.items()
        for measure, value in about["numbers"].items()
    }
    everything = [verdict for about in said.values() for verdict in about["verdicts"]]
    for verdict in Verdict:
        by_measure[f"health/{verdict}/all"] = everything.count(verdict) / len(everything)
    return by_measure


def by_filter(said: Told) -> Table:
    """Return a table with a row per filter."""
    rows = [
        (layer, i, verdict, reason, *measured)
        for layer, about in said.items()
        for i, (verdict, reason, measured) in enumerate(
            zip(about["verdicts"], about["reasons"], cells(about), strict=True)
        )
    ]
    return Table(columns=COLUMNS, rows=tuple(rows), description="A row per filter: the verdict, why, and the numbers.")


def by_layer(said: Told) -> Table:
    """Return a table with a row per layer: counts of verdicts, median drift, the best and the worst filters."""
    rows: list[tuple[str | int | float, ...]] = []
    for layer, about in said.items():
        counts = [about["verdicts"].count(verdict) for verdict in Verdict]
        drift, best, worst = about["numbers"]["drift"], about["best"], about["worst"]
        rows.append((layer, len(about["verdicts"]), *counts, drift, best, worst))
    columns = ("layer", "filters", *(verdict.value for verdict in Verdict), "median drift", "best", "worst")
    images = min(about["images"] for about in said.values())
    text = " ".join([f"Verdicts on the filters of each layer, from {images} images.", *_notes(said)])
    return Table(columns=columns, rows=tuple(rows), description=text, terminal=True)


def _notes(said: Told) -> list[str]:
    """Say where structure could not be told, and what this training had to do with it: it may be older."""
    small = [layer for layer, about in said.items() if not about["testable"]]
    notes = [f"Kernels too small to tell structure from noise: {', '.join(small)}."] if small else []
    tested = [about for about in said.values() if about["testable"] and "structured_at_start" in about]
    if tested:
        filters = sum(len(about["verdicts"]) for about in tested)
        start = sum(len(about["verdicts"]) * about["structured_at_start"] for about in tested) / filters
        now = sum(len(about["verdicts"]) * about["numbers"]["structured"] for about in tested) / filters
        notes.append(f"With structure: {start:.0%} of the filters at epoch 0, {now:.0%} now.")
        if start >= 0.5:
            notes.append("It was learned before this training (on ImageNet, say); what this one changed is the drift.")
    return notes


def _extremes(found: Findings, most: int = 3) -> tuple[str, str]:
    """Return the numbers of the filters with most structure among the useful ones, and of the worst of the others."""
    keys = [
        (-each.verdict.rank, float(z)) for each, z in zip(found.judgements, found.structure.z.tolist(), strict=True)
    ]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    worst = [i for i in order if keys[i][0] < 0][:most]
    best = [i for i in reversed(order) if keys[i][0] == 0][:most]
    return ", ".join(map(str, best)), ", ".join(map(str, worst))


def _measures(found: Findings) -> dict[str, float]:
    said = [each.verdict for each in found.judgements]
    values = {verdict.value: said.count(verdict) / len(said) for verdict in Verdict}
    values |= {
        "structured": float(found.structure.structured.double().mean()),
        "variance_entropy": found.entropy,
        "apoz": float(found.activity.apoz.mean()),
        "drift": float(found.drift.distance.median()),
    }
    if found.cka is not None:
        values["cka"] = found.cka
    if found.classes is not None:
        values["eta_squared"] = float(found.classes.eta_squared.median())
    return values


def _measured(found: Findings) -> Tensor:
    classes = found.classes
    nothing = torch.full((len(found.judgements),), torch.nan)
    measured = (
        *(found.structure.concentration, found.structure.z, found.structure.p),
        *(found.activity.apoz, found.activity.dormancy),
        *((classes.eta_squared, classes.p, classes.selectivity) if classes else (nothing, nothing, nothing)),
        *(found.duplicates.cosine, found.duplicates.of, found.drift.cosine, found.drift.distance),
    )
    return torch.stack([tensor.double() for tensor in measured], dim=1)
