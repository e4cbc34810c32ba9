"""Judge each filter of a layer by two questions: does the network need it, and does its kernel differ from chance?"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from filterscope.analysis.health.verdict import Verdict


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The verdict on one filter, and the reason for it in a sentence."""

    verdict: Verdict
    reason: str


def judge_filters(measures: Mapping[str, Tensor], *, images: int) -> list[Judgement]:
    """Judge every filter of a layer by its measures, as `measure_layer` returns them.

    *dead*: `dead` is 1. *duplicate*: `duplicate_of` is another filter. Otherwise two questions decide:

    | | kernel differs from chance | kernel as by chance |
    |---|---|---|
    | needed | *useful* | *unstructured* |
    | not needed | *idle* | *noise* |

    A kernel differs from chance if its weights are arranged in space (`structured`) or weigh its inputs (`uneven`)
    beyond chance, or if it is too small for both tests, which then are not among the measures. A filter is needed if
    `needed` is 1; without importance the verdict is *unknown*. Class information decides nothing: nearly every filter
    has some, random ones too.

    Args:
        measures: values of all filters by the key of the measure, `(filters,)` each.
        images: number of images that the activity was recorded on, for the reasons.
    """
    columns = {key: values.tolist() for key, values in measures.items()}
    judged = []
    for i in range(len(columns["dead"])):
        row = {key: values[i] for key, values in columns.items()}
        kernel, by_chance = _kernel(row)
        if row["dead"]:
            judged.append(Judgement(verdict=Verdict.DEAD, reason=f"never active on {images} images"))
        elif row["duplicate_of"] >= 0:
            reason = f"does what filter {row['duplicate_of']} does (correlation of outputs {row['correlation']:.3f})"
            judged.append(Judgement(verdict=Verdict.DUPLICATE, reason=reason))
        elif "needed" not in row:
            reason = f"whether it is needed was not measured; {kernel}"
            judged.append(Judgement(verdict=Verdict.UNKNOWN, reason=reason))
        else:
            words = (Verdict.USEFUL, Verdict.UNSTRUCTURED) if row["needed"] else (Verdict.IDLE, Verdict.NOISE)
            reason = f"{_need(row)}; {kernel}"
            judged.append(Judgement(verdict=words[by_chance], reason=reason))
    return judged


def _need(row: Mapping[str, float]) -> str:
    """Return the sentence on how much the loss is expected to change without a filter."""
    change, error = row["importance_signed"], row["importance_se"]
    if row["needed"] and abs(change) <= error:  # see `importance_of`
        effect = "without it the loss rises on some images and falls on others"
        return f"needed: {effect}, {change:+.2g} ± {error:.2g} on average"
    direction = "rise" if change >= 0 else "fall"
    need = "not needed" if not row["needed"] else "needed" if change >= 0 else "has a large effect"
    return f"{need}: without it the loss is expected to {direction} by {abs(change):.2g} ± {error:.2g}"


def _kernel(row: Mapping[str, float]) -> tuple[str, bool]:
    """Return what is known about a kernel, and whether it cannot be told from chance."""
    found = []
    if row.get("structured"):
        found.append(f"structured ({row['z']:.1f} standard deviations from chance)")
    if row.get("uneven"):
        found.append(f"weighs its inputs unevenly (p {_p_text(row['p_inputs'])})")
    if found:
        return " and ".join(found), False
    tested = [row[p] for p, test in (("p", "structured"), ("p_inputs", "uneven")) if test in row]
    if not tested:
        return "kernel too small to tell from chance", False
    return f"its weights are arranged as by chance (p {_p_text(min(tested))})", True


def _p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.2g}"
