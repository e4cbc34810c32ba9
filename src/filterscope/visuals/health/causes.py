"""Test the verdicts: what is lost without single filters and without all that can go, and with other kernels."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from pydantic import PositiveInt
from torch import Tensor

from filterscope.analysis.health.causes import (
    ablate_each,
    ablated,
    natural_preference,
    predictions,
    reinitialized_copy,
    with_kernels,
)
from filterscope.analysis.health.importance import LossChange, importance_of
from filterscope.analysis.health.removal import LayersBehind, compare_removals
from filterscope.analysis.hooks import compute_precision
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.registry import register
from filterscope.visuals.filter_selection import convolution_names
from filterscope.visuals.health.findings import HealthRecords, removable_filters
from filterscope.visuals.health.health import Health
from filterscope.visuals.output.outputs import Output, Row, Table
from filterscope.visuals.visual import Every, Examples, LayerChoice, Visual, VisualState, name_of

Kernels = dict[str, Tensor]


@register("visual", "health_causes")
@dataclass(frozen=True, kw_only=True)
class HealthCauses(Visual):
    """Test the verdicts when training has ended, and on demand.

    `health/causes` takes all filters that can go by their verdicts away together, and fits the layers behind them as
    `prune=unused` does; then as many random ones.
    `health/layers_replaced` gives layers no output, their kernels of epoch 0, and new random ones (Zhang, Bengio and
    Singer 2022): a layer is critical if that costs much, and robust if it does not. `health/classes_replaced` is the
    same by class. `health/ablation` silences single filters. `health/natural` compares each layer's response to images
    with its response to phase-scrambled versions of them, in the network and in a re-initialised copy. All is computed
    in float32: what a filter changes can be smaller than the rounding of bfloat16.

    Attributes:
        health: how filters are judged.
        layers: names of convolutions; None: all.
        each: the layers that are also replaced one by one, and whose filters are silenced one by one: a list of names,
            true for all, false for none. It takes far more time than the rest.
        images: the largest number of examples used.
        draws: the number of random sets of filters.
        batch_size: of the forward passes.
        every: draw every so many epochs of a training as well; 0: at its end only.
    """

    needs_images: ClassVar[bool] = True
    needs_convolutions: ClassVar[bool] = True
    at_end: ClassVar[bool] = True

    health: Health = field(default_factory=Health)
    layers: LayerChoice = None
    each: bool | LayerChoice = False
    images: PositiveInt = 256
    draws: PositiveInt = 5
    batch_size: PositiveInt = 64
    every: Every = 0

    @compute_precision(nullcontext)
    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> dict[str, Output]:
        """Return the tables.

        Raises:
            UserError: there are no images or no labels.
        """
        examples = examples.sample(self.images)
        if examples.labels is None or len(examples) == 0:
            raise UserError(f"health_causes needs images with labels; got {len(examples)} images without labels")
        layers = convolution_names(classifier, self.layers)
        single = convolution_names(classifier, self.each if isinstance(self.each, Sequence) else None)
        single = single if self.each else []
        judged = VisualState()
        self.health(classifier, examples, judged)
        records = judged.store["health"]
        start = {
            layer: state.store["health"][layer]["kernels"]
            for layer in layers
            if len(state.store.get("health", {}).get(layer, {}).get("kernels", ()))
        }
        shown: dict[str, Output] = {
            "health/causes": self._take_away(classifier, examples, {layer: records[layer] for layer in layers}, single),
            **self._replace(classifier, examples, start, layers, single),
            "health/natural": self._compare_natural(classifier, examples.images, layers),
        }
        if single:
            shown["health/ablation"] = self._ablate(classifier, examples, records, single)
        return shown

    def _take_away(
        self, classifier: Classifier, examples: Examples, records: HealthRecords, single: Sequence[str]
    ) -> Table:
        unneeded, behind = removable_filters(records), LayersBehind(classifier)
        rows: list[Row] = []
        fitted, all_fitted = dict[str, None](), True
        for name, group in {"all at once": list(records), **{layer: [layer] for layer in single}}.items():
            found = compare_removals(
                classifier,
                examples.images,
                _labels(examples),
                unneeded={layer: unneeded[layer] for layer in group},
                behind=behind,
                draws=self.draws,
                batch_size=self.batch_size,
            )
            filters = sum(len(records[layer]["verdicts"]) for layer in group)
            if found is None:
                rows.append((name, filters, 0, *[""] * 7))
                continue
            random, errors = found.random, found.random.errors
            at_random = (random.accuracy, errors[0], random.loss, errors[1])
            costs = (found.unneeded.accuracy, found.unneeded.loss, *at_random, found.silenced.accuracy)
            rows.append((name, filters, found.unneeded.size, *costs))
            fitted |= dict.fromkeys(found.fitted)
            all_fitted &= found.all_fitted
        names = ("layers", "filters", "can go", "accuracy lost", "loss rise")
        at_random_names = ("random: accuracy lost", "± accuracy", "random: loss rise", "± loss")
        return Table(
            columns=(*names, *at_random_names, "silenced: accuracy lost"),
            rows=tuple(rows),
            description="What is lost when all filters that can go by their verdicts (noise, idle, dead, duplicate) "
            "are taken away together and the layers behind them are fitted to what remains, as prune=unused does; then "
            f"with as many random filters of the same layers (mean of {self.draws} draws and its standard error). Of "
            f"{len(examples)} images, one half is for the fit and the other for the result, and the reverse. Silenced: "
            "if no layer is fitted." + ("" if all_fitted else _not_fitted(list(fitted))),
            terminal=True,
        )

    def _replace(
        self, classifier: Classifier, examples: Examples, start: Kernels, layers: Sequence[str], single: Sequence[str]
    ) -> dict[str, Output]:
        """Return the accuracy with layers silenced, rewound and re-randomised, by layer and by class."""
        labels = _labels(examples)
        fresh = reinitialized_copy(classifier)
        random = {layer: fresh.module_of(layer).get_parameter("weight").detach() for layer in layers}
        right = self._right(classifier, examples)
        rows: list[Row] = []
        by_class: dict[str, Tensor] = {"as trained": right}
        for name, group in {"all together": list(layers), **{layer: [layer] for layer in single}}.items():
            found: dict[str, Tensor | None] = {"silenced": None, "rewound": None, "re-randomised": None}
            every = {layer: torch.arange(len(random[layer])) for layer in group}
            with ablated(classifier, every):
                found["silenced"] = self._right(classifier, examples)
            if all(layer in start for layer in group):
                with with_kernels(classifier, {layer: start[layer] for layer in group}):
                    found["rewound"] = self._right(classifier, examples)
            with with_kernels(classifier, {layer: random[layer] for layer in group}):
                found["re-randomised"] = self._right(classifier, examples)
            accuracies = ("" if each is None else float(each.mean()) for each in found.values())
            rows.append((name, float(right.mean()), *accuracies))
            if name == "all together":
                by_class |= {key: each for key, each in found.items() if each is not None}
        names = examples.class_names or classifier.class_names
        classes: list[Row] = [
            (name_of(label, names), *(float(each[labels == label].mean()) for each in by_class.values()))
            for label in torch.unique(labels).tolist()
        ]
        text = (
            f"as a share of {len(labels)} images: as trained, without the layer's output, with its kernels of epoch 0, "
            "and with new random kernels."
        )
        missing = "" if start else " No kernels of epoch 0 are stored: these layers were not trained in this run."
        return {
            "health/layers_replaced": Table(
                columns=("layers", "as trained", "silenced", "rewound", "re-randomised"),
                rows=tuple(rows),
                description=f"Accuracy, {text}{missing}",
                terminal=True,
            ),
            "health/classes_replaced": Table(
                columns=("class", *by_class), rows=tuple(classes), description=f"Accuracy by class, {text}{missing}"
            ),
        }

    def _right(self, classifier: Classifier, examples: Examples) -> Tensor:
        """Return whether each image is classified correctly, 1 or 0."""
        found = predictions(classifier, examples.images, batch_size=self.batch_size)
        return (found == _labels(examples)).double()

    def _ablate(
        self, classifier: Classifier, examples: Examples, records: HealthRecords, single: Sequence[str]
    ) -> Table:
        """Return the changes of loss and accuracy without each filter, beside what was expected."""
        labels, names = _labels(examples), examples.class_names or classifier.class_names
        rows: list[Row] = []
        for layer in single:
            found = ablate_each(classifier, examples.images, labels, layer=layer)
            exact = importance_of(LossChange(found.losses), labels)
            verdicts, measures = records[layer]["verdicts"], records[layer]["measures"]
            count = len(verdicts)
            expected = measures["importance_signed"].tolist() if "importance_signed" in measures else [""] * count
            change, error = (exact.columns[key].tolist() for key in ("importance_signed", "importance_se"))
            accuracy = found.right.double().mean(0).tolist()
            hurt = ["; ".join(name_of(label, names) for label in classes) for classes in exact.classes_hurt]
            rows += zip([layer] * count, range(count), verdicts, expected, change, error, accuracy, hurt, strict=True)
        return Table(
            columns=(
                *("layer", "filter", "verdict", "expected change", "change", "± change", "change of accuracy"),
                "classes_hurt",
            ),
            rows=tuple(rows),
            description=f"Change of the loss and of the accuracy on {len(examples)} images without single filters, the "
            "change of the loss that was expected, and the classes whose loss rises most.",
        )

    def _compare_natural(self, classifier: Classifier, images: Tensor, layers: Sequence[str]) -> Table:
        own, copy = (
            natural_preference(network, images, layers=layers, batch_size=self.batch_size)
            for network in (classifier, reinitialized_copy(classifier))
        )
        rows = [(layer, float(own[layer].abs().median()), float(copy[layer].abs().median())) for layer in layers]
        return Table(
            columns=("layer", "natural preference", "re-initialised copy"),
            rows=tuple(rows),
            description=f"How much the responses to {len(images)} images differ from those to phase-scrambled versions "
            "of them (median over the filters; 0: not at all, 1: fully), in the network and in a re-initialised copy.",
        )


def _not_fitted(fitted: Sequence[str]) -> str:
    return (
        f" Only these layers were fitted: {', '.join(fitted) or 'none'}. For others (behind an addition, grouped "
        "convolutions, layers whose inputs are not known) the outputs of removed filters count as 0."
    )


def _labels(examples: Examples) -> Tensor:
    assert examples.labels is not None
    return examples.labels.cpu()
