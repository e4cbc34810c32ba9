"""One verdict per filter, by a small rule, with the reason in a sentence."""

from dataclasses import dataclass

from torch import Tensor

from filterscope.probes.health.activity import Activity
from filterscope.probes.health.classes import ClassInformation
from filterscope.probes.health.similarity import Duplicates
from filterscope.probes.health.structure import Structure

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
    return [_verdict(i, structure, activity, classes, duplicates, idle) for i in range(len(structure.p))]


def _verdict(
    i: int,
    structure: Structure,
    activity: Activity,
    classes: ClassInformation | None,
    duplicates: Duplicates,
    idle: float,
) -> Verdict:
    looks = _looks(structure, i)
    if activity.dead[i]:
        return Verdict(verdict="dead", reason=f"never positive on {activity.images} images")
    if structure.testable and not structure.structured[i]:
        return Verdict(verdict="noise", reason=f"its weights stand as they would by chance (p {_p(structure.p[i])})")
    if (of := int(duplicates.of[i])) >= 0:
        alike = f"does what filter {of} does (correlation of outputs {float(activity.correlation[i, of]):.3f})"
        return Verdict(verdict="duplicate", reason=alike, duplicate_of=of)
    if (share := float(activity.dormancy[i])) <= idle:
        return Verdict(verdict="idle", reason=f"{looks}, but puts out {share:.2g} of what the layer does on average")
    if classes is None:
        return Verdict(verdict="useful", reason=f"{looks} and active; too few labelled images to ask about classes")
    about = f"η² {float(classes.eta_squared[i]):.2f}, p {_p(classes.p[i])}"
    return Verdict(verdict="useful", reason=f"{looks} and active; of its response, classes explain {about}")


def _looks(structure: Structure, i: int) -> str:
    if not structure.testable:
        return "kernel too small to tell structure from noise"
    return f"structured ({float(structure.z[i]):.1f} deviations from chance)"


def _p(p: Tensor) -> str:
    return "< 0.001" if p < 0.001 else f"= {float(p):.2g}"
