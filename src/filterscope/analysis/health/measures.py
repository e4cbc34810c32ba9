"""The registered health measures: numbers of filters and layers that tables, TensorBoard and the gallery show.

To add a measure, decorate a function with `measure`, here or in a plugin; it then appears in all of them.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import update_wrapper
from typing import Literal

import torch
from torch import Tensor

from filterscope.analysis.health import structure as kernel_structure
from filterscope.analysis.health.activity import Activity
from filterscope.analysis.health.classes import ClassInformation
from filterscope.analysis.health.judgement import Judgement
from filterscope.analysis.health.similarity import Drift, Duplicates, linear_cka
from filterscope.analysis.health.structure import Structure
from filterscope.registry import register, registered

Summary = Literal["mean", "median"]
_numbers = itertools.count()


@dataclass(frozen=True, kw_only=True)
class LayerHealth:
    """All results about one layer, the input of every measure.

    Attributes:
        kernels: `(filters, inputs, kh, kw)`.
        responses: of the filters to the examples, `(images, filters)`.
        first_responses: the same before training, possibly to other images.
        structure: the structure of the kernels.
        activity: the activity of the filters.
        classes: their class information; None if too few labelled images were seen.
        duplicates: which filters are copies.
        drift: the change of the kernels since the start of training.
        judgements: the verdicts.
    """

    kernels: Tensor
    responses: Tensor
    first_responses: Tensor
    structure: Structure
    activity: Activity
    classes: ClassInformation | None
    duplicates: Duplicates
    drift: Drift
    judgements: list[Judgement]


class Measure:
    """A function that measures a layer, with what tables and pages need to know about it.

    Attributes:
        key: its name in tables and, as `health/<key>/<layer>`, in TensorBoard.
        title: its name in the gallery; empty: the gallery does not show it.
        description: a sentence that explains its values, from the function's docstring.
        summary: how the values of the filters are combined to the layer's number; None: not at all.
        number: its position in tables.
    """

    def __init__(self, function: Callable[[LayerHealth], Tensor | None], title: str, summary: Summary | None) -> None:
        """Wrap a function, which keeps its name and its place, so that the registry knows it."""
        update_wrapper(self, function)
        self._function = function
        self.key = function.__name__
        self.title = title
        self.description = " ".join((function.__doc__ or "").split())
        self.summary = summary
        self.number = next(_numbers)

    def __call__(self, layer: LayerHealth) -> Tensor | None:
        """Return a value of each filter `(filters,)` or the layer's number `()`; None if it cannot be measured."""
        return self._function(layer)


def measure(
    *, title: str = "", summary: Summary | None = None
) -> Callable[[Callable[[LayerHealth], Tensor | None]], Measure]:
    """Return a decorator that registers a function as a measure under its own name.

    The function's docstring explains the values to the readers of the gallery.

    Args:
        title: the name in the gallery; empty: not shown there.
        summary: how the values of the filters are combined to the layer's number; None: not at all.
    """
    return lambda function: register("measure", function.__name__)(Measure(function, title, summary))


def all_measures() -> dict[str, Measure]:
    """Return all registered measures by key, in the order of their definition."""
    return dict(sorted(registered("measure").items(), key=lambda each: each[1].number))


def measure_layer(layer: LayerHealth) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return the values of all measures of filters, `(filters,)` each, and the layer's numbers."""
    values, numbers = {}, {}
    for key, each in all_measures().items():
        found = each(layer)
        if found is None:
            continue
        if found.dim() == 0:
            numbers[key] = float(found)
            continue
        values[key] = found.double() if found.is_floating_point() else found.long()
        if each.summary and not values[key].isnan().any():
            numbers[key] = float(getattr(values[key].double(), each.summary)())
    return values, numbers


@measure()
def concentration(layer: LayerHealth) -> Tensor:
    """Concentration of the kernel's energy on few patterns; 1 for even energy."""
    return layer.structure.concentration


@measure(title="structure")
def z(layer: LayerHealth) -> Tensor:
    """Spatial structure of the kernel, in standard deviations from permuted weights."""
    return layer.structure.z


@measure(title="p of structure")
def p(layer: LayerHealth) -> Tensor:
    """Probability that randomly permuted weights have as much structure."""
    return layer.structure.p


@measure(summary="mean")
def structured(layer: LayerHealth) -> Tensor:
    """Whether the structure is significant at the chosen false-discovery rate, 1 or 0."""
    return layer.structure.structured


@measure()
def variance_entropy(layer: LayerHealth) -> Tensor:
    """Variance entropy of the layer's kernels (Gavrikov & Keuper 2022)."""
    return torch.tensor(kernel_structure.variance_entropy(layer.kernels), dtype=torch.float64)


@measure(title="share of zeros", summary="mean")
def apoz(layer: LayerHealth) -> Tensor:
    """Share of outputs that are zero after the ReLU (APoZ); 1 for a dead filter."""
    return layer.activity.apoz


@measure(title="activation")
def activation(layer: LayerHealth) -> Tensor:
    """Mean output as a multiple of the mean over the layer's filters; 0 if silent."""
    return layer.activity.dormancy


@measure(title="class information", summary="median")
def eta_squared(layer: LayerHealth) -> Tensor:
    """Share of its responses' variance that the class explains (η²), 0 to 1."""
    return layer.classes.eta_squared if layer.classes else _unknown(layer)


@measure()
def p_class(layer: LayerHealth) -> Tensor:
    """Probability that shuffled labels explain as much of its responses' variance."""
    return layer.classes.p if layer.classes else _unknown(layer)


@measure(title="class selectivity")
def selectivity(layer: LayerHealth) -> Tensor:
    """0 if it responds to all classes alike, 1 if to one class only."""
    return layer.classes.selectivity if layer.classes else _unknown(layer)


@measure(title="nearest kernel")
def cosine(layer: LayerHealth) -> Tensor:
    """Largest absolute cosine to another kernel of the layer; 1 for a copy."""
    return layer.duplicates.cosine


@measure()
def duplicate_of(layer: LayerHealth) -> Tensor:
    """Index of the filter that it is a copy of, -1 if none."""
    return layer.duplicates.of


@measure()
def drift_cosine(layer: LayerHealth) -> Tensor:
    """Cosine of the kernel to itself at the start of training; 1 if frozen."""
    return layer.drift.cosine


@measure(title="drift", summary="median")
def drift(layer: LayerHealth) -> Tensor:
    """Change of the kernel since the start of training, relative to its norm; 0 if frozen."""
    return layer.drift.distance


@measure()
def cka(layer: LayerHealth) -> Tensor | None:
    """Linear CKA of the responses to those before training; None if these were to other, or too few, images."""
    before, now = layer.first_responses, layer.responses
    return torch.tensor(linear_cka(before, now), dtype=torch.float64) if len(before) == len(now) > 2 else None


def _unknown(layer: LayerHealth) -> Tensor:
    return torch.full((len(layer.kernels),), torch.nan)
