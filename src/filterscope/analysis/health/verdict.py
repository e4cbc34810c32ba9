"""One verdict per filter, by a small rule, with the reason in a sentence."""

from dataclasses import dataclass

from filterscope.analysis.health.activity import Activity
from filterscope.analysis.health.classes import ClassInformation
from filterscope.analysis.health.similarity import Duplicates
from filterscope.analysis.health.structure import Structure

VERDICTS = ("useful", "idle", "noise", "dead", "duplicate")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is said of a filter: one of `VERDICTS`, why, and of which filter it is a duplicate (−1: of none)."""

    verdict: str
    reason: str
    duplicate_of: int = -1


def verdicts(
    *,
    structure: Structure,
    activity: Activity,
    classes: ClassInformation | None,
    duplicates: Duplicates,
    idle: float = 0.2,
) -> list[Verdict]:
    """Judge every filter of a layer.

    The first that holds counts. *dead*: never positive on any image. *noise*: the weights stand as they would by
    chance; never said of kernels too small to tell. *duplicate*: a copy of another filter. *idle*: puts out at most
    `idle` times what the layer's filters do on average. *useful*: none of these. Class information is told but decides
    nothing: nearly every filter has some, random ones too, and little of it did not mean that silencing costs little.

    Args:
        structure: of the layer's kernels.
        activity: of its filters on images.
        classes: their class information; None where too few labelled images were seen.
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
        _explained(classes, len(structure.p)),
        strict=True,
    )
    found = []
    for i, (dead, structured, p, z, of, share, explained) in enumerate(rows):
        looks = f"structured ({z:.1f} deviations from chance)"
        if not structure.testable:
            looks = "kernel too small to tell structure from noise"
        if dead:
            found.append(Verdict(verdict="dead", reason=f"never positive on {activity.images} images"))
        elif structure.testable and not structured:
            found.append(Verdict(verdict="noise", reason=f"its weights stand as they would by chance (p {_p(p)})"))
        elif of >= 0:
            alike = f"does what filter {of} does (correlation of outputs {float(activity.correlation[i, of]):.3f})"
            found.append(Verdict(verdict="duplicate", reason=alike, duplicate_of=of))
        elif share <= idle:
            little = f"{looks}, but puts out {share:.2g} of what the layer does on average"
            found.append(Verdict(verdict="idle", reason=little))
        else:
            found.append(Verdict(verdict="useful", reason=f"{looks} and active; {explained}"))
    return found


def _explained(classes: ClassInformation | None, filters: int) -> list[str]:
    """Return for each filter what classes explain of its response."""
    if classes is None:
        return ["too few labelled images to ask about classes"] * filters
    each = zip(classes.eta_squared.tolist(), classes.p.tolist(), strict=True)
    return [f"of its response, classes explain η² {share:.2f}, p {_p(p)}" for share, p in each]


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.2g}"
