"""The health visual: a verdict on every filter, numbers and tables of all layers, and warnings in the log."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from filterscope.analysis.filters import kernels
from filterscope.analysis.health.activity import RunningSums, activity
from filterscope.analysis.health.causes import predictions
from filterscope.analysis.health.classes import class_information, enough_images
from filterscope.analysis.health.importance import IMAGES, NEEDED, importance_of, loss_changes
from filterscope.analysis.health.input_weights import weighing
from filterscope.analysis.health.measures import LayerHealth
from filterscope.analysis.health.recorder import is_rectified, record_activity, recording_activity
from filterscope.analysis.health.similarity import drift, duplicates
from filterscope.analysis.health.structure import structure
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.layers import convolutions
from filterscope.registry import register
from filterscope.visuals.filter_selection import convolution_names
from filterscope.visuals.health.findings import (
    HealthRecords,
    add_importance,
    add_verdicts,
    filter_table,
    health_numbers,
    health_record,
    layer_table,
)
from filterscope.visuals.health.warnings import warn_of_deaths, warn_of_standstill
from filterscope.visuals.layer_state import fingerprint, fingerprints, is_frozen
from filterscope.visuals.output.outputs import Output
from filterscope.visuals.visual import Examples, LayerChoice, RecordLabels, Share, Visual, VisualState


@register("visual", "health")
@dataclass(frozen=True, kw_only=True)
class Health(Visual):
    """Judge every filter: numbers `verdicts/<verdict>`, and the tables `health` and `health/layers`.

    The activity of filters is recorded in the validation pass if there is one, and measured on the examples otherwise.
    A frozen layer is measured once. Whether filters are needed is measured on `importance` examples, in every epoch
    that has trained a convolution, before training and in the last epoch. Outside training, what the training measured
    is kept for unchanged weights.

    Attributes:
        layers: names of convolutions; None: all.
        importance: the number of examples on which importance is measured; 0: not at all. Without labels, the
            network's own predictions take their place.
        needed: a filter is needed if the loss is expected to rise by more than this without it.
        level: the false-discovery rate of the test for structure.
        alike: a filter is a duplicate of another from this correlation of their outputs on.
        draws: the number of permutations behind a p-value of structure.
        batch_size: of the examples.
        by_layer: whether each measure of each layer is a number of its own, too: `health/<measure>/<layer>`.
        every: judge before training and then every so many epochs; 0: before training only.
    """

    needs_images: ClassVar[bool] = True
    needs_convolutions: ClassVar[bool] = True
    priority: ClassVar[int] = -1

    layers: LayerChoice = None
    importance: NonNegativeInt = IMAGES
    needed: NonNegativeFloat = NEEDED
    level: Share = 0.05
    alike: Share = 0.95
    draws: PositiveInt = 299
    batch_size: PositiveInt = 64
    by_layer: bool = False

    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> dict[str, Output]:
        """Return the numbers and both tables.

        Raises:
            UserError: a layer is no convolution, or there are no images.
        """
        layers = self._layer_names(classifier)
        if len(examples) == 0:
            raise UserError("health needs images to measure the activity of filters; give validation images")
        store = state.store.setdefault("health", {})
        recorded: Mapping[str, RunningSums] = state.gathered.pop("activity", {})
        keys = self._keys(classifier, layers)
        due = [
            layer
            for layer in layers
            if layer in recorded
            or store.get(layer, {}).get("judged") != keys[layer]
            or (state.epoch is not None and not is_frozen(classifier, layer))
        ]
        if due:
            if state.epoch is None and len(examples) < self.importance:
                examples = examples.sample_if_possible(self.importance)
            sums, responses = record_activity(
                classifier, examples.images, examples.labels, layers=due, batch_size=self.batch_size
            )
        for layer in due:
            record = store.setdefault(layer, {})
            measured = self._measure(classifier, layer, recorded.get(layer, sums[layer]), responses[layer], record)
            record |= health_record(measured) | {"judged": keys[layer]}
            if state.epoch is not None and "structured" in record["numbers"]:
                record.setdefault("structured_at_start", record["numbers"]["structured"])
        records = {layer: store[layer] for layer in layers}
        self._weigh(classifier, examples, state, records, due)
        for record in records.values():
            add_verdicts(record)
        if state.epoch is not None:
            for layer in due:
                warn_of_deaths(layer, store[layer], epoch=state.epoch)
            warn_of_standstill(classifier, records, epoch=state.epoch)
        return {
            **health_numbers(records, by_layer=self.by_layer),
            "health": filter_table(records),
            "health/layers": layer_table(records),
        }

    @contextmanager
    def record_validation(self, classifier: Classifier, state: VisualState) -> Iterator[RecordLabels]:
        """Record the activity of all filters in a validation pass into `state.gathered`."""
        # All ranks must choose the same layers, and only rank 0 knows which ones were judged.
        due = [each for each in self._layer_names(classifier) if not (state.epoch and is_frozen(classifier, each))]
        with recording_activity(classifier, due) as recorder:

            def record(labels: Tensor | None) -> None:
                recorder.add(labels)

            yield record
        for sums in recorder.sums.values():
            sums.sum_over_ranks()
        state.gathered["activity"] = recorder.sums

    def _layer_names(self, classifier: Classifier) -> list[str]:
        layers = convolution_names(classifier, self.layers)
        if not layers:
            raise UserError("health judges the filters of convolutions, and this network has none")
        return layers

    def _weigh(
        self,
        classifier: Classifier,
        examples: Examples,
        state: VisualState,
        records: Mapping[str, dict[str, Any]],
        due: Sequence[str],
    ) -> None:
        """Add the importance of the filters to the records, if it can be measured and is not known."""
        if not self.importance or not classifier.has_classes:
            return
        key = f"{self.importance} {self.needed} {fingerprint(classifier)}"
        known = all(record.get("weighed") == key for record in records.values())
        frozen = state.epoch and not state.last and all(is_frozen(classifier, layer) for layer in records)
        if (known or frozen) and not due:
            return
        shown = examples.sample_if_possible(self.importance)
        labels = shown.labels if shown.labels is not None else predictions(classifier, shown.images)
        changes = loss_changes(classifier, shown.images, labels, layers=list(records), batch_size=self.batch_size)
        names = examples.class_names or classifier.class_names
        for layer, record in records.items():
            add_importance(record, importance_of(changes[layer], labels, needed=self.needed), names)
            record["weighed"] = key

    def _keys(self, classifier: Classifier, layers: Sequence[str]) -> dict[str, str]:
        """Return for each layer a text that changes with the options and the weights that its verdicts depend on."""
        options = f"{self.level} {self.alike} {self.draws}"
        return {layer: f"{options} {state}" for layer, state in fingerprints(classifier, layers).items()}

    def _measure(
        self, classifier: Classifier, layer: str, sums: RunningSums, responses: Tensor, record: dict[str, Any]
    ) -> LayerHealth:
        """Return all results about a layer; `record` holds its kernels and responses before training."""
        weights = kernels(classifier, layer).contiguous()  # channels-last in training, which is slow to reduce
        # Frozen kernels and responses are equal to those before training, so an empty tensor saves their copy.
        frozen, nothing = is_frozen(classifier, layer), torch.empty(0)
        start = record.setdefault("kernels", nothing if is_frozen(classifier, layer, alone=True) else weights)
        first = record.setdefault("responses", nothing if frozen else responses)
        colours = layer == convolutions(classifier.layers)[0]
        acts = activity(sums)
        classes = class_information(sums) if enough_images(sums) else None
        groups = cast(nn.Conv2d, classifier.module_of(layer)).groups
        return LayerHealth(
            kernels=weights,
            responses=responses,
            first_responses=first if len(first) else responses,
            structure=structure(weights, together=colours, draws=self.draws, level=self.level),
            weighing=weighing(weights, level=self.level),
            activity=acts,
            rectified=is_rectified(classifier, layer),
            classes=classes,
            duplicates=duplicates(weights, acts.correlation, groups=groups, alike=self.alike),
            drift=drift(start if len(start) else weights, weights),
        )


def measure_health(classifier: Classifier, examples: Examples) -> HealthRecords:
    """Return what `Health` finds out about each layer, with importance measured on all examples."""
    state = VisualState()
    Health(importance=len(examples))(classifier, examples, state)
    records: HealthRecords = state.store["health"]
    return records
