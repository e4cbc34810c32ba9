"""Verdicts on all filters: numbers per layer, a row per filter, a row per layer, and a warning when filters die."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.layers import convolutions, find_layer
from filterscope.probes.filters import kernels
from filterscope.probes.health.activity import Activity, activity
from filterscope.probes.health.classes import ClassInformation, class_information, enough_images
from filterscope.probes.health.similarity import Drift, Duplicates, drift, duplicates, linear_cka
from filterscope.probes.health.structure import Structure, structure, variance_entropy
from filterscope.probes.health.tally import Tally
from filterscope.probes.health.verdict import VERDICTS, Verdict, verdicts
from filterscope.probes.health.watching import watch
from filterscope.visuals.visual import Examples, Output, Past, Table, fingerprint, frozen

log = logging.getLogger(__name__)

COLUMNS = (
    *("layer", "filter", "verdict", "reason", "concentration", "z", "p", "apoz", "dormancy", "eta_squared", "p_class"),
    *("selectivity", "cosine", "duplicate_of", "drift_cosine", "drift_distance"),
)


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that is known of one layer."""

    structure: Structure
    entropy: float
    activity: Activity
    classes: ClassInformation | None
    duplicates: Duplicates
    drift: Drift
    cka: float | None
    verdicts: list[Verdict]


@dataclass(frozen=True, kw_only=True)
class Health:
    """Judge every filter: `health/<measure>/<layer>` numbers, the table `health` and, by layer, `health/layers`.

    What a validation pass has gathered already (`{layer: Tally}` in `past.store["activity"]`, taken away here) is used
    instead of running the examples.

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

    layers: Sequence[str] | None = None
    idle: float = 0.2
    level: float = 0.05
    alike: float = 0.95
    draws: int = 299
    batch_size: int = 64
    every: int = 1

    def __call__(self, classifier: Classifier, examples: Examples, past: Past) -> dict[str, Output]:
        """Return the numbers and both tables.

        Raises:
            UserError: a layer is no convolution, or there are no images.
        """
        names = self.layers if self.layers is not None else convolutions(classifier.layers)
        layers = [find_layer(classifier.layers, name).name for name in names]
        if not layers:
            raise UserError("health judges the filters of convolutions, and this network has none")
        if len(examples) == 0:
            raise UserError("health needs images to see what filters do, and there are none; give validation images")
        store = past.store.setdefault("health", {})
        gathered: Mapping[str, Tally] = past.store.pop("activity", {})
        tallies, responses = watch(
            classifier, examples.images, examples.labels, layers=layers, batch_size=self.batch_size
        )
        findings = {
            layer: self._judge(
                classifier, layer, gathered.get(layer, tallies[layer]), responses[layer], store.setdefault(layer, {})
            )
            for layer in layers
        }
        _warn(findings, store, past)
        return {**_numbers(findings), "health": _by_filter(findings), "health/layers": by_layer(findings)}

    def _judge(
        self, classifier: Classifier, layer: str, tally: Tally, responses: Tensor, store: dict[str, Any]
    ) -> Findings:
        now = kernels(classifier, layer)
        still = frozen(classifier, layer)
        start = store.setdefault("kernels", torch.empty(0) if frozen(classifier, layer, alone=True) else now)
        before = store.setdefault("responses", torch.empty(0) if still else responses)
        form = self._structure(classifier, layer, now, store)
        acts = activity(tally)
        told = class_information(tally) if enough_images(tally) else None
        copies = duplicates(now, acts.correlation, alike=self.alike)
        judged = verdicts(structure=form, activity=acts, classes=told, duplicates=copies, idle=self.idle)
        store["verdicts"] = [each.verdict for each in judged]
        return Findings(
            structure=form,
            entropy=store["entropy"],
            activity=acts,
            classes=told,
            duplicates=copies,
            drift=drift(start if len(start) else now, now),
            cka=linear_cka(before if len(before) else responses, responses) if len(responses) > 2 else None,
            verdicts=judged,
        )

    def _structure(self, classifier: Classifier, layer: str, now: Tensor, store: dict[str, Any]) -> Structure:
        """Return the structure of a layer, tested anew only where the kernels have changed."""
        state = f"{self.draws} {self.level} {fingerprint(classifier, layer, alone=True)}"
        if store.get("state") != state:
            colours = layer == convolutions(classifier.layers)[0]
            found = structure(now, together=colours, draws=self.draws, level=self.level)
            store |= {"state": state, "structure": vars(found), "entropy": variance_entropy(now)}
        return Structure(**store["structure"])


def by_layer(findings: Mapping[str, Findings]) -> Table:
    """Return a table with a row per layer: counts of verdicts, median drift, the best and the worst filters."""
    rows: list[tuple[str | int | float, ...]] = []
    for layer, found in findings.items():
        said = [each.verdict for each in found.verdicts]
        best, worst = _extremes(found)
        moved = float(found.drift.distance.median())
        rows.append((layer, len(said), *(said.count(verdict) for verdict in VERDICTS), moved, best, worst))
    columns = ("layer", "filters", *VERDICTS, "median drift", "best", "worst")
    return Table(columns=columns, rows=tuple(rows), description="Verdicts on the filters of each layer.")


def _extremes(found: Findings, most: int = 3) -> tuple[str, str]:
    """Return the numbers of the filters with most structure among the useful ones, and of the worst of the others."""
    rank = {"dead": 0, "noise": 1, "idle": 2, "duplicate": 3, "useful": 4}
    keys = [(rank[each.verdict], float(z)) for each, z in zip(found.verdicts, found.structure.z.tolist(), strict=True)]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    worst = [i for i in order if keys[i][0] < rank["useful"]][:most]
    best = [i for i in reversed(order) if keys[i][0] == rank["useful"]][:most]
    return ", ".join(map(str, best)), ", ".join(map(str, worst))


def _numbers(findings: Mapping[str, Findings]) -> dict[str, Output]:
    numbers: dict[str, Output] = {}
    for layer, found in findings.items():
        said = [each.verdict for each in found.verdicts]
        shares = {verdict: said.count(verdict) / len(said) for verdict in VERDICTS}
        values = {
            **shares,
            "structured": float(found.structure.structured.double().mean()),
            "variance_entropy": found.entropy,
            "apoz": float(found.activity.apoz.mean()),
            "drift": float(found.drift.distance.median()),
        }
        if found.cka is not None:
            values["cka"] = found.cka
        if found.classes is not None:
            values["eta_squared"] = float(found.classes.eta_squared.median())
        numbers |= {f"health/{measure}/{layer}": value for measure, value in values.items()}
    everything = [each.verdict for found in findings.values() for each in found.verdicts]
    numbers["health/useful/all"] = everything.count("useful") / len(everything)
    return numbers


def _by_filter(findings: Mapping[str, Findings]) -> Table:
    rows = []
    for layer, found in findings.items():
        told = found.classes
        nothing = torch.full((len(found.verdicts),), torch.nan)
        measured = (
            *(found.structure.concentration, found.structure.z, found.structure.p),
            *(found.activity.apoz, found.activity.dormancy),
            *((told.eta_squared, told.p, told.selectivity) if told else (nothing, nothing, nothing)),
            *(found.duplicates.cosine, found.duplicates.of, found.drift.cosine, found.drift.distance),
        )
        columns = [tensor.tolist() for tensor in measured]
        for i, (said, *cells) in enumerate(zip(found.verdicts, *columns, strict=True)):
            rows.append((layer, i, said.verdict, said.reason, *cells))
    return Table(columns=COLUMNS, rows=tuple(rows), description="A row per filter: the verdict, why, and the numbers.")


def _warn(findings: Mapping[str, Findings], store: dict[str, Any], past: Past) -> None:
    """Say in the log when a tenth of a layer's filters has died since the epoch in which fewest were dead."""
    if past.epoch is None:
        return
    for layer, found in findings.items():
        dead, filters = int(found.activity.dead.sum()), len(found.verdicts)
        fewest = store[layer].setdefault("fewest_dead", {"dead": dead, "epoch": past.epoch})
        if dead <= fewest["dead"]:
            store[layer]["fewest_dead"] = {"dead": dead, "epoch": past.epoch}
        elif dead - fewest["dead"] >= max(1, filters // 10):
            died = dead - fewest["dead"]
            log.warning("%s: %d of %d filters have died since epoch %d", layer, died, filters, fewest["epoch"])
