"""Verdicts on all filters: numbers per layer, a row per filter, a row per layer, and a warning when filters die."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from filterscope.analysis.filters import kernels
from filterscope.analysis.health.activity import activity
from filterscope.analysis.health.classes import class_information, enough_images
from filterscope.analysis.health.judgement import judge_filters
from filterscope.analysis.health.recorder import record_activity, recording_activity, reduce_over_ranks
from filterscope.analysis.health.running_sums import RunningSums
from filterscope.analysis.health.similarity import drift, duplicates, linear_cka
from filterscope.analysis.health.structure import Structure, structure, variance_entropy
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.layers import convolutions, find_layer
from filterscope.registry import register
from filterscope.visuals.fingerprints import fingerprint, is_frozen
from filterscope.visuals.health.findings import Findings, by_filter, by_layer, numbers, told
from filterscope.visuals.health.warnings import warn_of_deaths, warn_of_standstill
from filterscope.visuals.output.outputs import Output
from filterscope.visuals.visual import Examples, Visual, VisualState


@register("visual", "health")
@dataclass(frozen=True, kw_only=True)
class Health(Visual):
    """Judge every filter: `health/<measure>/<layer>` numbers, the table `health` and, by layer, `health/layers`.

    What filters do is told from the validation pass where it was watched, else from the examples. A frozen layer is
    judged once; outside training, a layer that training judged and that is as it was keeps what was said of it.

    Attributes:
        layers: names of convolutions; None: all.
        idle: a filter is idle that puts out at most this share of the layer's mean (τ of Sokar et al. 2023).
        level: of the false-discovery rate of structure.
        alike: from which cosine or correlation on a filter is a duplicate of another.
        draws: of the null of structure.
        batch_size: of the examples.
        every: judge every so many epochs, 0: before training only.
    """

    needs_images: ClassVar[bool] = True
    priority: ClassVar[int] = -1

    layers: Sequence[str] | None = None
    idle: float = 0.2
    level: float = 0.05
    alike: float = 0.95
    draws: int = 299
    batch_size: int = 64

    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> dict[str, Output]:
        """Return the numbers and both tables.

        Raises:
            UserError: a layer is no convolution, or there are no images.
        """
        layers = self._names(classifier)
        if len(examples) == 0:
            raise UserError("health needs images to see what filters do, and there are none; give validation images")
        store = state.store.setdefault("health", {})
        gathered: Mapping[str, RunningSums] = state.gathered.pop("activity", {})
        due = [layer for layer in layers if layer in gathered or not self._known(classifier, layer, state)]
        if due:
            images, labels = examples.images, examples.labels
            seen, responses = record_activity(classifier, images, labels, layers=due, batch_size=self.batch_size)
        for layer in due:
            about = store.setdefault(layer, {})
            found = self._judge(classifier, layer, gathered.get(layer, seen[layer]), responses[layer], about)
            about |= told(found) | {"judged": self._state(classifier, layer)}
            if state.epoch is not None:
                about.setdefault("structured_at_start", about["numbers"]["structured"])
        said = {layer: store[layer] for layer in layers}
        if state.epoch is not None:
            for layer in due:
                warn_of_deaths(layer, store[layer], epoch=state.epoch)
            warn_of_standstill(classifier, said, epoch=state.epoch)
        return {**numbers(said), "health": by_filter(said), "health/layers": by_layer(said)}

    def unsupported_reason(self, classifier: Classifier) -> str:
        """Say why this network cannot be judged, or nothing."""
        return "" if convolutions(classifier.layers) else "the network has no convolutions"

    @contextmanager
    def record_validation(
        self, classifier: Classifier, state: VisualState
    ) -> Iterator[Callable[[Tensor | None], None]]:
        """Watch a validation pass; at its end the tallies lie in `past.gathered`."""
        # All ranks must come to the same list, and what has been judged is known to the first alone.
        due = [layer for layer in self._names(classifier) if not (state.epoch and is_frozen(classifier, layer))]
        with recording_activity(classifier, due) as recorder:

            def take(labels: Tensor | None) -> None:
                recorder.add(labels)

            yield take
        reduce_over_ranks(recorder.tallies)
        state.gathered["activity"] = recorder.tallies

    def _names(self, classifier: Classifier) -> list[str]:
        names = self.layers if self.layers is not None else convolutions(classifier.layers)
        layers = [find_layer(classifier.layers, name).name for name in names]
        if not layers:
            raise UserError("health judges the filters of convolutions, and this network has none")
        return layers

    def _known(self, classifier: Classifier, layer: str, state: VisualState) -> bool:
        """Return whether what was said of a layer still holds, so that nobody needs to look again."""
        about = state.store.get("health", {}).get(layer, {})
        if state.epoch is not None and not is_frozen(classifier, layer):
            return False
        return bool(about.get("judged") == self._state(classifier, layer))

    def _state(self, classifier: Classifier, layer: str) -> str:
        knobs = f"{self.idle} {self.level} {self.alike} {self.draws}"
        return f"{knobs} {fingerprint(classifier, layer)}"

    def _judge(
        self, classifier: Classifier, layer: str, tally: RunningSums, responses: Tensor, store: dict[str, Any]
    ) -> Findings:
        now = kernels(classifier, layer).contiguous()  # gone through often, and laid out channels-last in training
        still = is_frozen(classifier, layer)
        start = store.setdefault("kernels", torch.empty(0) if is_frozen(classifier, layer, alone=True) else now)
        before = store.setdefault("responses", torch.empty(0) if still else responses)
        form = self._structure(classifier, layer, now, store)
        acts = activity(tally)
        classes = class_information(tally) if enough_images(tally) else None
        copies = duplicates(now, acts.correlation, alike=self.alike)
        return Findings(
            structure=form,
            entropy=store["entropy"],
            activity=acts,
            classes=classes,
            duplicates=copies,
            drift=drift(start if len(start) else now, now),
            cka=_likeness(before if len(before) else responses, responses),
            judgements=judge_filters(structure=form, activity=acts, classes=classes, duplicates=copies, idle=self.idle),
        )

    def _structure(self, classifier: Classifier, layer: str, now: Tensor, store: dict[str, Any]) -> Structure:
        """Return the structure of a layer, tested anew only where the kernels have changed."""
        digest = f"{self.draws} {self.level} {fingerprint(classifier, layer, alone=True)}"
        if store.get("state") != digest:
            colours = layer == convolutions(classifier.layers)[0]
            known = store.get("structure", {})
            before = Structure(**known) if "null" in known else None
            found = structure(now, together=colours, draws=self.draws, level=self.level, before=before)
            store |= {"state": digest, "structure": vars(found), "entropy": variance_entropy(now)}
        return Structure(**store["structure"])


def _likeness(before: Tensor, now: Tensor) -> float | None:
    """Return CKA over the same images; None where these are others than those of the start, or too few."""
    return linear_cka(before, now) if len(before) == len(now) > 2 else None
