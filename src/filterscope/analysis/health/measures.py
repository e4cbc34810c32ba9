"""The registered health measures: numbers of filters and layers that tables, TensorBoard and the gallery show.

To add a measure, decorate a function with `measure`, here or in a plugin; it then appears in all of them.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from filterscope.analysis.health.activity import Activity
from filterscope.analysis.health.classes import ClassInformation
from filterscope.analysis.health.judgement import Judgement
from filterscope.analysis.health.similarity import Drift, Duplicates, linear_cka
from filterscope.analysis.health.structure import Structure, variance_entropy
from filterscope.registry import register, registered

Summary = Literal["mean", "median"]
"""How the values of the filters are combined to the layer's number in TensorBoard."""
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
    """A registered function that measures a layer, with what tables and pages need to know about it.

    Attributes:
        key: its name in tables and, as `health/<key>/<layer>`, in TensorBoard.
        title: its name in the gallery; empty: the gallery does not show it.
        description: a sentence that explains its values.
        summary: how the values of the filters are combined to the layer's number; None: not at all.
        number: its position in tables.
    """

    def __init__(
        self,
        key: str,
        title: str,
        summary: Summary | None,
        description: str,
        function: "Function",
        module: str = __name__,
    ) -> None:
        """Name the function and register it."""
        self.key, self.title, self.summary = key, title, summary
        self.description = " ".join(description.split())
        self.number = next(_numbers)
        self._function = function
        self.__module__, self.__qualname__ = module, key  # for the registry
        register("measure", key)(self)

    def __call__(self, layer: LayerHealth) -> Tensor | None:
        """Return a value of each filter `(filters,)` or the layer's number `()`; None if it cannot be measured."""
        return self._function(layer)


Function = Callable[[LayerHealth], Tensor | None]


def measure(*, title: str = "", summary: Summary | None = None) -> Callable[[Function], Measure]:
    """Return a decorator that registers a function as a measure under its own name.

    The function's docstring explains the values to the readers of the gallery.

    Args:
        title: the name in the gallery; empty: not shown there.
        summary: how the values of the filters are combined to the layer's number; None: not at all.
    """
    return lambda function: Measure(
        function.__name__, title, summary, function.__doc__ or "", function, function.__module__
    )


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
def cka(layer: LayerHealth) -> Tensor | None:
    """Linear CKA of the responses to those before training; None if these were to other, or too few, images."""
    before, now = layer.first_responses, layer.responses
    known = len(before) == len(now) > 2
    return torch.tensor(linear_cka(before, now), dtype=torch.float64) if known else None


def _of_classes(name: str) -> Function:
    """Return a function that reads class information, NaN for each filter if there is none."""
    return lambda layer: getattr(layer.classes, name) if layer.classes else torch.full((len(layer.kernels),), torch.nan)


# Key, title in the gallery, summary, description, values.
for _measure in (
    ("concentration", "", None, "Concentration of the kernel's energy on few spatial frequencies; 1 if even.",
     lambda layer: layer.structure.concentration),
    ("z", "structure", None, "Spatial structure of the kernel, in standard deviations from permuted weights.",
     lambda layer: layer.structure.z),
    ("p", "p-value of structure", None, "Probability that randomly permuted weights have as much structure.",
     lambda layer: layer.structure.p),
    ("structured", "", "mean", "Whether the structure is significant at the chosen false-discovery rate, 1 or 0.",
     lambda layer: layer.structure.structured),
    ("variance_entropy", "", None, "Variance entropy of the layer's kernels (Gavrikov & Keuper 2022).",
     lambda layer: torch.tensor(variance_entropy(layer.kernels), dtype=torch.float64)),
    ("apoz", "share of zeros", "mean", "Share of outputs that are zero after the ReLU (APoZ); 1 for a dead filter.",
     lambda layer: layer.activity.apoz),
    ("activation", "activation", None, "Mean output as a multiple of the mean over the layer's filters; 0 if silent.",
     lambda layer: layer.activity.dormancy),
    ("eta_squared", "class information", "median",
     "Share of its responses' variance that the class explains (η²), 0 to 1.", _of_classes("eta_squared")),
    ("p_class", "", None, "Probability that shuffled labels explain as much of that variance.", _of_classes("p")),
    ("selectivity", "class selectivity", None, "0 if it responds to all classes alike, 1 if to one class only.",
     _of_classes("selectivity")),
    ("cosine", "largest cosine", None, "Largest absolute cosine to another kernel of the layer; 1 for a copy.",
     lambda layer: layer.duplicates.cosine),
    ("duplicate_of", "", None, "Index of the filter that it copies, -1 if none.", lambda layer: layer.duplicates.of),
    ("drift_cosine", "", None, "Cosine of the kernel to itself at the start of training; 1 if frozen.",
     lambda layer: layer.drift.cosine),
    ("drift", "drift", "median", "Change of the kernel since the start, relative to its norm; 0 if frozen.",
     lambda layer: layer.drift.distance),
):  # fmt: skip
    Measure(*_measure)
