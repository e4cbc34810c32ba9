"""Judge each filter of a layer by a fixed order of rules, with the reason in a sentence."""

from dataclasses import dataclass

from filterscope.analysis.health.activity import Activity
from filterscope.analysis.health.classes import ClassInformation
from filterscope.analysis.health.similarity import Duplicates
from filterscope.analysis.health.structure import Structure
from filterscope.analysis.health.verdict import Verdict


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The verdict on one filter, the reason for it, and the filter that it duplicates (-1: none)."""

    verdict: Verdict
    reason: str
    duplicate_of: int = -1


def judge_filters(
    *,
    structure: Structure,
    activity: Activity,
    classes: ClassInformation | None,
    duplicates: Duplicates,
    idle: float = 0.2,
) -> list[Judgement]:
    """Judge every filter of a layer.

    The first rule that applies decides. *dead*: never positive on any image. *noise*: the weights are arranged as by
    chance; never given to kernels too small for the test. *duplicate*: a copy of another filter. *idle*: outputs at
    most `idle` times the layer's mean. *useful*: none of these. Class information is reported but decides nothing:
    nearly every filter has some, random ones too, and filters with little of it were not cheaper to silence.

    Args:
        structure: of the layer's kernels.
        activity: of its filters on images.
        classes: their class information; None if too few labelled images were seen.
        duplicates: among its filters.
        idle: the threshold τ of dormancy.
    """
    rows = zip(
        activity.dead.tolist(),
        structure.structured.tolist(),
        structure.p.tolist(),
        structure.z.tolist(),
        duplicates.of.tolist(),
        activity.dormancy.tolist(),
        _class_sentences(classes, len(structure.p)),
        strict=True,
    )
    judged = []
    for i, (dead, structured, p, z, of, share, classes_say) in enumerate(rows):
        kernel = f"structured ({z:.1f} standard deviations from chance)"
        if not structure.testable:
            kernel = "kernel too small to test for structure"
        if dead:
            judged.append(Judgement(verdict=Verdict.DEAD, reason=f"never positive on {activity.images} images"))
        elif structure.testable and not structured:
            reason = f"its weights are arranged as by chance (p {_p_text(p)})"
            judged.append(Judgement(verdict=Verdict.NOISE, reason=reason))
        elif of >= 0:
            reason = f"does what filter {of} does (correlation of outputs {float(activity.correlation[i, of]):.3f})"
            judged.append(Judgement(verdict=Verdict.DUPLICATE, reason=reason, duplicate_of=of))
        elif share <= idle:
            reason = f"{kernel}, but outputs only {share:.2g} of the layer's mean"
            judged.append(Judgement(verdict=Verdict.IDLE, reason=reason))
        else:
            judged.append(Judgement(verdict=Verdict.USEFUL, reason=f"{kernel} and active; {classes_say}"))
    return judged


def _class_sentences(classes: ClassInformation | None, filters: int) -> list[str]:
    """Return for each filter how much of its response the classes explain."""
    if classes is None:
        return ["too few labelled images to measure class information"] * filters
    each = zip(classes.eta_squared.tolist(), classes.p.tolist(), strict=True)
    return [f"classes explain η² {share:.2f} of its response, p {_p_text(p)}" for share, p in each]


def _p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.2g}"
