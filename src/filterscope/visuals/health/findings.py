"""The health records of layers as a checkpoint holds them, and the tables and numbers made of them."""

import math
from collections.abc import Mapping
from typing import Any

from filterscope.analysis.health.measures import LayerHealth, all_measures, measure_layer
from filterscope.analysis.health.verdict import Verdict
from filterscope.visuals.output.outputs import Output, Table

HealthRecords = Mapping[str, Mapping[str, Any]]
"""By layer, the results of `health_record`."""
Cell = str | int | float


def health_record(layer: LayerHealth) -> dict[str, Any]:
    """Return the results about a layer as plain data for a checkpoint.

    Returns:
        `verdicts` and `reasons` of each filter, its `measures` by key as tensors (writing thousands of single numbers
        would make checkpoints slow), the layer's `numbers` by key, the number of `images`, and whether the kernels are
        large enough (`testable`) to distinguish structure from noise.
    """
    measures, numbers = measure_layer(layer)
    verdicts = [each.verdict.value for each in layer.judgements]
    shares = {verdict.value: verdicts.count(verdict) / len(verdicts) for verdict in Verdict}
    return {
        "verdicts": verdicts,
        "reasons": [each.reason for each in layer.judgements],
        "measures": measures,
        "numbers": shares | numbers,
        "images": layer.activity.images,
        "testable": layer.structure.testable,
    }


def filter_facts(record: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """Return verdict, reason and measures of each filter as plain data; empty texts if the layer was not judged."""
    if "verdicts" not in record:
        return [{"verdict": "", "reason": ""} for _ in range(count)]
    columns = {key: values.tolist() for key, values in record["measures"].items()}
    return [
        {"verdict": verdict, "reason": reason, **{key: rounded(values[i]) for key, values in columns.items()}}
        for i, (verdict, reason) in enumerate(zip(record["verdicts"], record["reasons"], strict=True))
    ]


def rounded(value: float, digits: int = 4) -> float | None:
    """Return a number with so many significant digits, None for NaN and infinity."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def health_numbers(records: HealthRecords) -> dict[str, Output]:
    """Return `health/<key>/<layer>` of every layer, and the share of each verdict in all layers."""
    numbers: dict[str, Output] = {
        f"health/{key}/{layer}": value for layer, record in records.items() for key, value in record["numbers"].items()
    }
    everything = [verdict for record in records.values() for verdict in record["verdicts"]]
    return numbers | {f"health/{verdict}/all": everything.count(verdict) / len(everything) for verdict in Verdict}


def filter_table(records: HealthRecords) -> Table:
    """Return a table with a row for each filter: layer, filter, verdict, reason and all measures."""
    keys = [key for key in all_measures() if any(key in record["measures"] for record in records.values())]
    rows: list[tuple[Cell, ...]] = []
    for layer, record in records.items():
        unknown = [math.nan] * len(record["verdicts"])
        columns = [record["measures"][key].tolist() if key in record["measures"] else unknown for key in keys]
        rows += zip(
            [layer] * len(unknown), range(len(unknown)), record["verdicts"], record["reasons"], *columns, strict=True
        )
    names = ("layer", "filter", "verdict", "reason", *keys)
    return Table(columns=names, rows=tuple(rows), description="Verdict, reason and measures of each filter.")


def layer_table(records: HealthRecords) -> Table:
    """Return a table with a row for each layer: counts of the verdicts, median drift, best and worst filters."""
    rows: list[tuple[Cell, ...]] = []
    for layer, record in records.items():
        counts = [record["verdicts"].count(verdict) for verdict in Verdict]
        drift = record["numbers"].get("drift", math.nan)
        rows.append((layer, len(record["verdicts"]), *counts, drift, *_extremes(record)))
    columns = ("layer", "filters", *(verdict.value for verdict in Verdict), "median drift", "best", "worst")
    images = min(record["images"] for record in records.values())
    text = " ".join([f"Verdicts on the filters of each layer, from {images} images.", *_notes(records)])
    return Table(columns=columns, rows=tuple(rows), description=text, terminal=True)


def _notes(records: HealthRecords) -> list[str]:
    """Return sentences on layers that cannot be tested, and on structure that is older than this training."""
    small = [layer for layer, record in records.items() if not record["testable"]]
    notes = [f"Kernels too small to test for structure: {', '.join(small)}."] if small else []
    tested = [record for record in records.values() if record["testable"] and "structured_at_start" in record]
    if tested:
        filters = sum(len(record["verdicts"]) for record in tested)
        start = sum(len(record["verdicts"]) * record["structured_at_start"] for record in tested) / filters
        now = sum(len(record["verdicts"]) * record["numbers"].get("structured", 0.0) for record in tested) / filters
        notes.append(f"With structure: {start:.0%} of the filters at epoch 0, {now:.0%} now.")
        if start >= 0.5:
            notes.append("It was learned before this training (on ImageNet, say); the drift shows what changed since.")
    return notes


def _extremes(record: Mapping[str, Any], most: int = 3) -> tuple[str, str]:
    """Return the best useful filters and the worst others, those with the most and the least structure first."""
    ranks = [-Verdict(verdict).rank for verdict in record["verdicts"]]
    keys = list(zip(ranks, record["measures"]["z"].tolist(), strict=True))
    order = sorted(range(len(keys)), key=keys.__getitem__)
    worst = [i for i in order if keys[i][0] < 0][:most]
    best = [i for i in reversed(order) if keys[i][0] == 0][:most]
    return ", ".join(map(str, best)), ", ".join(map(str, worst))
