"""The registered health measures: numbers of filters and layers that tables, TensorBoard and the gallery show.

To add a measure, decorate a function with `measure`, here or in a plugin; it then appears in all of them.
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Literal

import torch
from torch import Tensor

from filterscope.analysis.health.activity import Activity
from filterscope.analysis.health.classes import ClassInformation
from filterscope.analysis.health.importance import Importance
from filterscope.analysis.health.input_weights import Weighing
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
        weighing: how the kernels weigh their inputs.
        activity: the activity of the filters.
        rectified: whether negative outputs have no effect; otherwise zeros and mean outputs say little.
        classes: their class information; None if too few labelled images were seen.
        duplicates: which filters are copies.
        drift: the change of the kernels since the start of training.
        importance: how much the loss would change without each filter; None if it was not measured.
    """

    kernels: Tensor
    responses: Tensor
    first_responses: Tensor
    structure: Structure
    weighing: Weighing
    activity: Activity
    rectified: bool
    classes: ClassInformation | None
    duplicates: Duplicates
    drift: Drift
    importance: Importance | None = None


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
        else:
            values[key] = found.double() if found.is_floating_point() else found.long()
    return values, summaries_of(values) | numbers


def summaries_of(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the layer's numbers that combine values of its filters, by the key of the measure."""
    summaries = {key: each.summary for key, each in all_measures().items() if each.summary}
    return {
        key: float(getattr(each.double(), summaries[key])())
        for key, each in values.items()
        if key in summaries and not each.isnan().any()
    }


@measure()
def cka(layer: LayerHealth) -> Tensor | None:
    """Linear CKA of the responses to those before training; None if these were to other, or too few, images."""
    before, now = layer.first_responses, layer.responses
    known = len(before) == len(now) > 2
    return torch.tensor(linear_cka(before, now), dtype=torch.float64) if known else None


def _read(values: str, *, known: str) -> Function:
    """Return a function that reads an attribute of a layer, NaN for each filter if the attribute `known` is false."""
    value, is_known = attrgetter(values), attrgetter(known)
    return lambda layer: value(layer) if is_known(layer) else torch.full((len(layer.kernels),), torch.nan)


def _of_importance(key: str) -> Function:
    """Return a function that reads a column of the importance."""
    return lambda layer: layer.importance.columns[key] if layer.importance else None


def _correlation(layer: LayerHealth) -> Tensor:
    of = layer.duplicates.of
    found = layer.activity.correlation[torch.arange(len(of)), of.clamp_min(0)]
    return torch.where(of < 0, torch.nan, found)


# Key, title in the gallery, summary, description, values.
for _measure in (
    ("importance", "importance", "median", "Size of the change of the loss to be expected without the filter.",
     _of_importance("importance")),
    ("importance_signed", "expected change of the loss", None,
     "Expected change of the loss without the filter; the filter does harm if it is negative.",
     _of_importance("importance_signed")),
    ("importance_se", "standard error of that change", None,
     "Standard error of the mean change of the loss over the images.", _of_importance("importance_se")),
    ("needed", "", "mean", "Whether the network needs the filter, 1 or 0.", _of_importance("needed")),
    ("dead", "", None, "Whether the filter was never active behind norm and activation, 1 or 0.",
     lambda layer: layer.activity.dead & layer.rectified),
    ("concentration", "", None, "Concentration of the kernel's energy on few spatial frequencies; 1 if even.",
     lambda layer: layer.structure.concentration),
    ("z", "structure", None,
     "Spatial structure of the kernel, in standard deviations from permuted weights; NaN if untestable.",
     _read("structure.z", known="structure.testable")),
    ("p", "p-value of structure", None,
     "Probability that randomly permuted weights have as much structure; NaN if untestable.",
     _read("structure.p", known="structure.testable")),
    ("structured", "", "mean", "Whether the structure is significant at the chosen false-discovery rate, 1 or 0.",
     lambda layer: layer.structure.structured if layer.structure.testable else None),
    ("inputs", "uneven inputs", None,
     "Share of the variance of its squared weights that lies between input channels, 0 to 1; NaN if untestable.",
     _read("weighing.share", known="weighing.testable")),
    ("p_inputs", "p-value of uneven inputs", None,
     "Probability that randomly permuted weights weigh the input channels as unevenly; NaN if untestable.",
     _read("weighing.p", known="weighing.testable")),
    ("uneven", "", "mean", "Whether it weighs its inputs significantly unevenly, 1 or 0.",
     lambda layer: layer.weighing.uneven if layer.weighing.testable else None),
    ("variance_entropy", "", None, "Variance entropy of the layer's kernels (Gavrikov & Keuper 2022).",
     lambda layer: torch.tensor(variance_entropy(layer.kernels), dtype=torch.float64)),
    ("apoz", "share of zeros", "mean", "Share of outputs that are zero after the ReLU (APoZ); 1 for a dead filter.",
     _read("activity.apoz", known="rectified")),
    ("activation", "activation", None, "Mean output as a multiple of the mean over the layer's filters; 0 if silent.",
     _read("activity.dormancy", known="rectified")),
    ("eta_squared", "class information", "median",
     "Share of its responses' variance that the class explains (η²), 0 to 1.",
     _read("classes.eta_squared", known="classes")),
    ("p_class", "", None, "Probability that shuffled labels explain as much of that variance.",
     _read("classes.p", known="classes")),
    ("selectivity", "class selectivity", None, "0 if it responds to all classes alike, 1 if to one class only.",
     _read("classes.selectivity", known="classes")),
    ("cosine", "largest cosine", None, "Largest absolute cosine to a kernel with the same inputs; 1 for a copy.",
     lambda layer: layer.duplicates.cosine),
    ("duplicate_of", "", None, "Index of the filter that it copies, -1 if none.", lambda layer: layer.duplicates.of),
    ("correlation", "", None, "Correlation of its outputs with those of the filter that it copies; NaN if none.",
     _correlation),
    ("drift_cosine", "", None, "Cosine of the kernel to itself at the start of training; 1 if frozen.",
     lambda layer: layer.drift.cosine),
    ("drift", "drift", "median", "Change of the kernel since the start, relative to its norm; 0 if frozen.",
     lambda layer: layer.drift.distance),
):  # fmt: skip
    Measure(*_measure)
