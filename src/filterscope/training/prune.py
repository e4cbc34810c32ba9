"""Prune a trained network: judge its filters, cut out those that are not needed, and compare before and after."""

import csv
import io
import logging
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor

from filterscope.data.datamodule import ImageDataModule
from filterscope.errors import UserError, first_line
from filterscope.models.classifier import Classifier
from filterscope.models.filter_removal import Cut, cut_filters, multiply_adds
from filterscope.models.network_copy import evaluating
from filterscope.storage.atomic import write_file
from filterscope.training.example_images import examples_of
from filterscope.visuals.health.findings import HealthRecords, removable_filters
from filterscope.visuals.health.health import measure_health
from filterscope.visuals.output.outputs import Table
from filterscope.visuals.output.tables import table_csv, table_text
from filterscope.visuals.visual import Examples

log = logging.getLogger(__name__)

SUMMARY, FILTERS = "pruning_summary.csv", "pruning.csv"
COLUMNS = ("network", "accuracy", "loss", "parameters", "multiply-adds", "ms per image", "weights in MB")
TEMPERATURES = tuple(2 ** (i / 4) for i in (0, *range(-4, 13)))  # the first if the images have no labels
Row = tuple[str | int | float, ...]


@dataclass(kw_only=True)
class Prune:
    """Cuts filters out of a trained network before it is trained further.

    Args:
        by: `unused`: filters whose verdict is noise, idle, dead or duplicate; `share`: the least important filters.
        share: of all filters, for `by="share"`.
        images: validation images on which filters are judged and later layers are fitted.
        fit: whether later layers are fitted to make up for the removed filters (`cut_filters`).
    """

    by: Literal["unused", "share"] = "unused"
    share: Annotated[float, Field(gt=0, lt=1)] = 0.3
    images: PositiveInt = 500
    fit: bool = True
    rows: list[Row] = field(default_factory=list, init=False)

    def cut(self, classifier: Classifier, data: ImageDataModule, folder: Path, *, write: bool = True) -> None:
        """Cut filters out of a classifier in place, and write `pruning.csv`, which says of every filter why.

        Raises:
            UserError: the network cannot be cut, or none of its filters can go.
        """
        self.rows = [("before", *evaluate_network(classifier, data))]
        examples = examples_of(data, self.images)
        records = judge_for_cut(classifier, examples)
        wanted = removable_filters(records) if self.by == "unused" else least_important(records, self.share)
        if not any(wanted.values()):
            raise UserError(f"prune={self.by}: every filter of {classifier.backbone.name} is needed; nothing is cut")
        cut = cut_filters(classifier, wanted, images=examples.images if self.fit else None)
        self.rows.append(("after the cut", *evaluate_network(classifier, data)))
        total = sum(len(record["verdicts"]) for record in records.values())
        log.info("pruning: %d of %d filters were cut out", sum(map(len, cut.filters.values())), total)
        if write:
            names = ("layer", "filter", "verdict", "importance_signed", "importance_se", "removed", "why")
            table = Table(columns=names, rows=tuple(_filter_rows(records, cut)), description="")
            write_file(folder / FILTERS, table_csv(table).encode())
            self._write(folder)

    def resume(self, folder: Path) -> None:
        """Read the rows that an interrupted run has written; if that fails, the table will lack them."""
        path = folder / SUMMARY
        try:
            rows = list(csv.reader(io.StringIO(path.read_text())))[1:3]
            self.rows = [(row[0], *(float(cell) for cell in row[1:])) for row in rows]
        except (OSError, ValueError, IndexError) as error:
            log.warning("%s cannot be read (%s): it will lack the network before the training", path, first_line(error))

    def finish(self, classifier: Classifier, data: ImageDataModule, folder: Path) -> None:
        """Add the network after the training, and write and print the table."""
        self.rows = [*self.rows[:2], ("after the training", *evaluate_network(classifier, data))]
        self._write(folder)
        text = "Validation accuracy and loss, and the size and speed of the network (one process, batches of 16)."
        log.info("%s", table_text(Table(columns=COLUMNS, rows=tuple(self.rows), description=text), "pruning"))

    def _write(self, folder: Path) -> None:
        table = Table(columns=COLUMNS, rows=tuple(self.rows), description="")
        write_file(folder / SUMMARY, table_csv(table).encode())


def evaluate_network(classifier: Classifier, data: ImageDataModule) -> Row:
    """Return validation accuracy and loss, parameters, multiply-adds, ms per image, and megabytes of weights."""
    device = next(classifier.parameters()).device
    losses, right = [], []
    with evaluating(classifier), torch.no_grad():
        for images, labels in data.ordered("val", augmentation_epoch=None):
            logits = classifier(images.to(device)).float().cpu()
            losses.append(F.cross_entropy(logits, labels, reduction="none"))
            right.append(logits.argmax(1) == labels)
        batch = images[:16].to(device)
        times = [_seconds(classifier, batch) for _ in range(7)]
    tensors = [*classifier.parameters(), *classifier.buffers()]
    return (
        float(torch.cat(right).double().mean()),
        float(torch.cat(losses).mean()),
        sum(parameter.numel() for parameter in classifier.parameters()),
        multiply_adds(classifier),
        1000 * statistics.median(times) / len(batch),
        sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e6,
    )


def _seconds(classifier: Classifier, batch: Tensor) -> float:
    start = time.perf_counter()
    float(classifier(batch).sum())  # also waits for a GPU
    return time.perf_counter() - start


def judge_for_cut(classifier: Classifier, examples: Examples) -> HealthRecords:
    """Judge filters by the loss of the calibrated network.

    A cut makes a network less sure of itself. If it was too sure, that lowers its loss and not its mistakes. So the
    logits are divided by the temperature with the lowest loss on the images (Guo et al. 2017).
    """
    labels = examples.labels
    with evaluating(classifier), torch.no_grad():
        device = next(classifier.parameters()).device
        logits = torch.cat([classifier(batch.to(device)).float().cpu() for batch in torch.split(examples.images, 32)])
    losses = {t: 0.0 if labels is None else float(F.cross_entropy(logits / t, labels.cpu())) for t in TEMPERATURES}
    temperature = min(TEMPERATURES, key=losses.__getitem__)
    handle = classifier.register_forward_hook(lambda _module, _inputs, output: output / temperature)
    try:
        return measure_health(classifier, examples)
    finally:
        handle.remove()


def least_important(records: HealthRecords, share: float) -> dict[str, list[int]]:
    """Return the least important share of all filters; importance is relative to the norm over its layer."""
    values = {
        layer: record["measures"]["importance"] / record["measures"]["importance"].norm().clamp_min(1e-12)
        for layer, record in records.items()
    }
    everything = torch.cat(list(values.values()))
    chosen = torch.zeros(len(everything), dtype=torch.bool)
    chosen[everything.argsort(stable=True)[: int(share * len(everything))]] = True
    layers = torch.split(chosen, [len(each) for each in values.values()])
    return {layer: each.nonzero()[:, 0].tolist() for layer, each in zip(values, layers, strict=True)}


def _filter_rows(records: HealthRecords, cut: Cut) -> Iterator[Row]:
    for layer, record in records.items():
        measures, removed, kept = record["measures"], set(cut.filters.get(layer, ())), cut.kept.get(layer, {})
        for i, (verdict, reason) in enumerate(zip(record["verdicts"], record["reasons"], strict=True)):
            why = f"kept: {kept[i]}; {reason}" if i in kept else reason
            signed, error = (float(measures[key][i]) for key in ("importance_signed", "importance_se"))
            yield layer, i, verdict, signed, error, "yes" if i in removed else "no", why
