"""What is said of a filter, as plain data: numbers, verdict, the classes it answers to."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from filterscope.visuals.health.findings import COLUMNS, cells


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A number of a filter: under which key, what it is called, and a sentence that explains it."""

    key: str
    name: str
    about: str


MEASURES = (
    Measure(
        key="activation",
        name="activation",
        about="Its mean output as a multiple of what the layer's filters put out on average: 1 is ordinary, 0 silent.",
    ),
    Measure(
        key="apoz",
        name="share of zeros",
        about="The share of places at which it puts out nothing after the ReLU (APoZ); 1 on a dead filter.",
    ),
    Measure(
        key="z",
        name="structure",
        about="How far the order of its weights is from chance, in standard deviations; random weights lie around 0.",
    ),
    Measure(
        key="p",
        name="p of structure",
        about="How often weights in random places would look as ordered; small says that something was learned.",
    ),
    Measure(
        key="eta_squared",
        name="class information",
        about="The share of its response's variation that the class of the image explains (η²), 0 to 1.",
    ),
    Measure(
        key="selectivity",
        name="class selectivity",
        about="0 where it answers to all classes alike, 1 where it answers to one class alone.",
    ),
    Measure(
        key="cosine",
        name="nearest kernel",
        about="The largest cosine between its kernel and another one of the layer; 1 is a copy.",
    ),
    Measure(
        key="drift_distance",
        name="drift",
        about="How far its kernel has come since before training, in lengths of what it was; 0 where it is frozen.",
    ),
)


def judged(about: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """Return verdict, reason and numbers of every filter, empty ones where the layer was not judged.

    Args:
        about: what the health visual remembers of a layer.
        count: how many filters there are.
    """
    if "rows" not in about:
        return [{"verdict": "", "reason": ""} for _ in range(count)]
    measured = cells(about)
    names = ["activation" if name == "dormancy" else name for name in COLUMNS[4:]]
    return [
        {
            "verdict": about["verdicts"][i],
            "reason": about["reasons"][i],
            **{name: plain(value) for name, value in zip(names, measured[i], strict=True)},
        }
        for i in range(count)
    ]


def plain(value: float, digits: int = 4) -> float | None:
    """Return a number with so many digits, None for one that is none."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def served(responses: Tensor, labels: Tensor | None, most: int = 5) -> list[list[tuple[int, float]]]:
    """Return for each filter the classes that it answers to most, with the multiple of its mean response.

    Args:
        responses: `(images, filters)`.
        labels: `(images,)`, None where they are not known.
        most: classes; those it answers to no more than to any are left out.
    """
    if labels is None or not len(labels):
        return [[] for _ in range(responses.shape[1])]
    classes = torch.unique(labels)
    means = torch.stack([responses[labels == label].mean(0) for label in classes])
    times = means / responses.mean(0).clamp_min(1e-12)
    best = times.topk(min(most, len(classes)), dim=0)
    rows = zip(classes[best.indices].T.tolist(), best.values.T.tolist(), strict=True)
    return [[(int(c), float(f"{v:.3g}")) for c, v in zip(*row, strict=True) if v > 1.05] for row in rows]


def counted(verdicts: Sequence[str], order: Sequence[str]) -> dict[str, int]:
    """Return how many filters have each verdict, in an order, without those that none has."""
    return {verdict: verdicts.count(verdict) for verdict in order if verdict in verdicts}
