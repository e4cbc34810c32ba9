"""One verdict per filter, by a small rule, with the reason in a sentence."""

from dataclasses import dataclass

import torch
from scipy.stats import false_discovery_control
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
    idle: float = 0.1,
    level: float = 0.05,
) -> list[Verdict]:
    """Judge every filter of a layer.

    The first that holds counts. *dead*: never positive on any image. *noise*: the weights stand as they would by
    chance; never said of kernels too small to tell. *duplicate*: a copy of another filter. *idle*: structured, but
    puts out at most `idle` times what the layer's filters do on average, or its response says nothing about the class
    (after Benjamini–Hochberg at `level`). *useful*: none of these.

    Args:
        structure: of the layer's kernels.
        activity: of its filters on images.
        classes: their class information; None where too few labelled images were seen: then it decides nothing.
        duplicates: among its filters.
        idle: the threshold τ of dormancy.
        level: of the false-discovery rate.
    """
    told = _informative(classes, level)
    return [_verdict(i, structure, activity, classes, duplicates, told, idle) for i in range(len(structure.p))]


def _verdict(
    i: int,
    structure: Structure,
    activity: Activity,
    classes: ClassInformation | None,
    duplicates: Duplicates,
    told: Tensor | None,
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
    if classes is None or told is None:
        return Verdict(verdict="useful", reason=f"{looks} and active; too few labelled images to ask about classes")
    about = f"η² {float(classes.eta_squared[i]):.2f}, p {_p(classes.p[i])}"
    if not told[i]:
        return Verdict(verdict="idle", reason=f"{looks}, but its response says nothing about the class ({about})")
    return Verdict(verdict="useful", reason=f"{looks}, and its response tells classes apart ({about})")


def _looks(structure: Structure, i: int) -> str:
    if not structure.testable:
        return "kernel too small to tell structure from noise"
    return f"structured ({float(structure.z[i]):.1f} deviations from chance)"


def _informative(classes: ClassInformation | None, level: float) -> Tensor | None:
    if classes is None:
        return None
    return torch.from_numpy(false_discovery_control(classes.p.numpy())) <= level


def _p(p: Tensor) -> str:
    return "< 0.001" if p < 0.001 else f"= {float(p):.2g}"
