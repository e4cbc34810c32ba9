"""The health records of layers as a checkpoint holds them, and the tables and numbers made of them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from filterscope.analysis.health.importance import Importance
from filterscope.analysis.health.judgement import judge_filters
from filterscope.analysis.health.measures import LayerHealth, all_measures, measure_layer, summaries_of
from filterscope.analysis.health.verdict import Verdict
from filterscope.visuals.output.outputs import Output, Row, Table
from filterscope.visuals.visual import name_of

_NAMED = 6  # layers that a sentence below a table names

HealthRecords = Mapping[str, Mapping[str, Any]]
"""By layer, the results of `health_record`."""


def health_record(layer: LayerHealth) -> dict[str, Any]:
    """Return the measures of a layer as plain data for a checkpoint.

    Returns:
        the `measures` of each filter by key as tensors (writing thousands of single numbers would make checkpoints
        slow), the layer's `numbers` by key, the number of `images`, and whether the kernels are large enough
        (`testable`) to distinguish structure from noise.
    """
    measures, numbers = measure_layer(layer)
    return {
        "measures": measures,
        "numbers": numbers,
        "images": layer.activity.images,
        "testable": "structured" in measures or "uneven" in measures,
    }


def add_importance(record: dict[str, Any], importance: Importance, class_names: Sequence[str]) -> None:
    """Add the importance of a layer's filters to its record, with the names of the classes that each is needed for."""
    record["measures"] |= importance.columns
    record["numbers"] |= summaries_of(importance.columns)
    hurt = importance.classes_hurt
    record["classes_hurt"] = ["; ".join(name_of(label, class_names) for label in labels) for labels in hurt]


def add_verdicts(record: dict[str, Any]) -> None:
    """Add `verdicts` and `reasons` of each filter to the record of a layer, and the shares of the verdicts."""
    judgements = judge_filters(record["measures"], images=record["images"])
    verdicts = [each.verdict.value for each in judgements]
    record["verdicts"], record["reasons"] = verdicts, [each.reason for each in judgements]
    record["numbers"] |= {verdict.value: verdicts.count(verdict) / len(verdicts) for verdict in Verdict}


def filter_facts(record: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """Return verdict, reason and measures of each filter as plain data; empty texts if the layer was not judged."""
    if "verdicts" not in record:
        return [{"verdict": "", "reason": ""} for _ in range(count)]
    columns = {key: values.tolist() for key, values in record["measures"].items()}
    hurt = record.get("classes_hurt", [""] * count)
    return [
        {"verdict": verdict, "reason": reason, "classes_hurt": hurt[i]}
        | {key: rounded(values[i]) for key, values in columns.items()}
        for i, (verdict, reason) in enumerate(zip(record["verdicts"], record["reasons"], strict=True))
    ]


def rounded(value: float, digits: int = 4) -> float | None:
    """Return a number with so many significant digits, None for NaN and infinity."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def health_numbers(records: HealthRecords, *, by_layer: bool) -> dict[str, Output]:
    """Return the shares of verdicts and of needed filters in all layers, and `health/<key>/<layer>` if `by_layer`."""
    each: dict[str, Output] = {
        f"health/{key}/{layer}": value for layer, record in records.items() for key, value in record["numbers"].items()
    }
    everything = [verdict for record in records.values() for verdict in record["verdicts"]]
    shares = {str(verdict): everything.count(verdict) / len(everything) for verdict in Verdict}
    if not shares[Verdict.UNKNOWN]:
        del shares[Verdict.UNKNOWN]
        shares["needed"] = sum(shares[verdict] for verdict in Verdict if verdict.needed)
    numbers: dict[str, Output] = {f"verdicts/{key}": value for key, value in shares.items()}
    return numbers | (each if by_layer else {})


def filter_table(records: HealthRecords) -> Table:
    """Return a table with a row for each filter: layer, filter, verdict, reason, importance and all other measures."""
    keys = [key for key in all_measures() if any(key in record["measures"] for record in records.values())]
    rows: list[Row] = []
    for layer, record in records.items():
        count = len(record["verdicts"])
        unknown = [math.nan] * count
        columns = [record["measures"][key].tolist() if key in record["measures"] else unknown for key in keys]
        hurt = record.get("classes_hurt", [""] * count)
        facts = [layer] * count, range(count), record["verdicts"], record["reasons"], hurt
        rows += zip(*facts, *columns, strict=True)
    names = ("layer", "filter", "verdict", "reason", "classes_hurt", *keys)
    return Table(columns=names, rows=tuple(rows), description="Verdict, reason and measures of each filter.")


def layer_table(records: HealthRecords) -> Table:
    """Return a table with a row for each layer: needed or not, counts of the verdicts, best and worst filters."""
    everything = [verdict for record in records.values() for verdict in record["verdicts"]]
    words = [verdict for verdict in Verdict if verdict is not Verdict.UNKNOWN or verdict in everything]
    rows: list[Row] = []
    for layer, record in records.items():
        verdicts = record["verdicts"]
        counts = [verdicts.count(verdict) for verdict in words]
        needed, unneeded = sum(map(is_needed, verdicts)), sum(map(can_go, verdicts))
        drift = record["numbers"].get("drift", math.nan)
        rows.append((layer, len(verdicts), needed, unneeded, *counts, drift, *_extremes(record)))
    columns = (
        "layer",
        "filters",
        "needed",
        "not needed",
        *map(str, words),
        "median drift",
        "most needed",
        "least needed",
    )
    return Table(columns=columns, rows=tuple(rows), description=" ".join(_notes(records)), terminal=True)


def need_sentence(verdicts: Sequence[str]) -> str:
    """Return how many of the filters are needed and how many are not, for the head of a table or page.

    Each was judged with all others in place. Whether they can go together is measured by `health_causes`.
    """
    if not verdicts or {"", Verdict.UNKNOWN} & set(verdicts):
        return ""
    needed, unneeded = sum(map(is_needed, verdicts)), sum(map(can_go, verdicts))
    return (
        f"{needed} of {len(verdicts)} filters are needed; {unneeded} ({unneeded / len(verdicts):.0%}) are "
        "not, with all others in place (idle, noise, dead, or a duplicate of another filter)."
    )


def is_needed(verdict: str) -> bool:
    """Return whether the network needs filters with this verdict."""
    return Verdict(verdict).needed


def is_wasted(verdict: str) -> bool:
    """Return whether filters with this verdict neither are needed nor have learned anything: noise and dead ones."""
    return verdict in (Verdict.NOISE, Verdict.DEAD)


def can_go(verdict: str) -> bool:
    """Return whether a filter with this verdict can be cut out alone: not needed, or another one does the same."""
    return Verdict(verdict).unused or verdict == Verdict.DUPLICATE


def removable_filters(records: HealthRecords) -> dict[str, list[int]]:
    """Return the filters that can go by their verdicts: not needed ones, and duplicates but not their originals."""
    found = {}
    for layer, record in records.items():
        of, dead = (record["measures"][key].tolist() for key in ("duplicate_of", "dead"))
        copies = {i for i, original in enumerate(of) if original >= 0 and not dead[i]}
        originals = {of[i] for i in copies}
        found[layer] = [
            i for i, verdict in enumerate(record["verdicts"]) if i in copies or (can_go(verdict) and i not in originals)
        ]
    return found


def _notes(records: HealthRecords) -> list[str]:
    """Return sentences on need, on layers that cannot be tested, and on structure that is older than this training."""
    images = min(record["images"] for record in records.values())
    need = need_sentence([verdict for record in records.values() for verdict in record["verdicts"]])
    notes = [*([need] if need else []), f"Activity was measured on {images} images."]
    small = [layer for layer, record in records.items() if not record["testable"]]
    named = f"{', '.join(small[:_NAMED])}" + f" and {len(small) - _NAMED} more" * (len(small) > _NAMED)
    named = "those of all layers" if 1 < len(small) == len(records) else named
    notes += [f"Kernels too small to tell from chance: {named}."] if small else []
    tested = [record for record in records.values() if "structured_at_start" in record]
    if tested:
        filters = sum(len(record["verdicts"]) for record in tested)
        start = sum(len(record["verdicts"]) * record["structured_at_start"] for record in tested) / filters
        now = sum(len(record["verdicts"]) * record["numbers"].get("structured", 0.0) for record in tested) / filters
        notes.append(f"With structure: {start:.0%} of the filters at epoch 0, {now:.0%} now.")
        if start >= 0.5:
            notes.append("It was learned before this training (on ImageNet, say); the drift shows what changed since.")
    return notes


def _extremes(record: Mapping[str, Any]) -> tuple[str, str]:
    """Return three of the needed filters, and of those that can go: needed most and least; without importance none."""
    expected = record["measures"].get("importance_signed")
    if expected is None:
        return "", ""
    order = [(i, record["verdicts"][i]) for i in expected.argsort(descending=True).tolist()]
    most, least = [i for i, word in order if is_needed(word)], [i for i, word in reversed(order) if can_go(word)]
    return ", ".join(map(str, most[:3])), ", ".join(map(str, least[:3]))
