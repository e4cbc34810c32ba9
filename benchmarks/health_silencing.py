"""Measure the accuracy lost without filters, by verdict, and the growth of structure over the epochs."""

import math
from functools import partial
from pathlib import Path

import torch
from health_networks import Images, alexnet, fashion, finetune, flowers, from_scratch, partition, wide
from report import Report

from filterscope.analysis.health.causes import accuracy
from filterscope.analysis.health.removal import (
    Cost,
    LayersBehind,
    Removal,
    compare_removals,
    draw_sets,
    mean_cost,
    removal_costs,
)
from filterscope.analysis.health.structure import structure
from filterscope.models.classifier import Classifier
from filterscope.models.layers import convolutions
from filterscope.visuals.health.findings import HealthRecords, is_needed, removable_filters
from filterscope.visuals.health.health import measure_health
from filterscope.visuals.visual import Examples

UNSEEN = (1, 2, 3)
"""Seeds of networks and partitions; the thresholds of the verdicts were chosen on seed 0 only."""


def decisive(report: Report, quick: bool, real: Path) -> None:
    """Measure the cost of filters that are not needed, random and needed ones, with later layers fitted."""
    size, draws, seeds = 128, 6 if quick else 20, UNSEEN[: 1 if quick else None]
    (images, labels), (more, their) = flowers(real, "train", size), flowers(real, "val", size)
    pool = torch.cat([images, more]), torch.cat([labels, their])
    found = []
    for seed in seeds:
        torch.manual_seed(seed)
        classifier = alexnet(real, 102)
        train, judging, testing = partition(pool, 1020, 510, 255 if quick else 510, seed=seed)
        finetune(classifier, train, epochs=3 if quick else 6)
        found.append(take_away(report, f"flowers, network {seed}", classifier, judging, testing, draws))
    compare(report, "flowers", found)
    found, count, tested = [], *((6_000, 2_000) if quick else (20_000, 4_000))
    for seed in seeds:
        torch.manual_seed(seed)
        classifier, name = wide(), f"FashionMNIST, network {seed}"
        story(report, name, classifier)
        (train,) = partition(fashion(real, train=True, count=60_000), count, seed=seed)
        epochs = 4 if quick else 6
        from_scratch(classifier, train, epochs=epochs, each=partial(story, report, name, classifier))
        judging, testing = partition(fashion(real, train=False, count=10_000), tested // 2, tested // 2, seed=seed)
        found.append(take_away(report, name, classifier, judging, testing, draws))
    compare(report, "FashionMNIST", found)


def story(report: Report, name: str, classifier: Classifier, epoch: int = 0) -> None:
    """Report the share of structured filters after an epoch."""
    for layer in convolutions(classifier.layers):
        p = structure(classifier.module_of(layer).weight.detach()).p
        what = f"{name} {layer}, epoch {epoch}: p < .05"
        report.add(what, float((p < 0.05).float().mean()), at_most=0.15 if epoch == 0 else None)


Costs = dict[str, tuple[Removal, Cost] | None]
"""The costs of one network, by layer and for all layers at once, and those of as many needed filters.

None if every filter is needed, or none.
"""


def take_away(report: Report, name: str, classifier: Classifier, judging: Images, testing: Images, draws: int) -> Costs:
    """Judge on the images `judging`, take away on the images `testing`, layer by layer and in all layers at once."""
    records = judge(classifier, judging)
    report.add(f"{name}: accuracy", accuracy(classifier, *testing))
    unneeded, behind = removable_filters(records), LayersBehind(classifier)
    needed = {
        layer: [i for i, word in enumerate(record["verdicts"]) if is_needed(word)] for layer, record in records.items()
    }
    for layer, record in records.items():
        counts = {kind: record["verdicts"].count(kind) for kind in sorted(set(record["verdicts"]))}
        report.add(f"{name} {layer}: filters that can go", len(unneeded[layer]), **counts)
    groups = {layer: {layer: found} for layer, found in unneeded.items()} | {"all layers at once": unneeded}
    costs: Costs = {}
    with torch.autocast("cpu", torch.bfloat16):
        for what, group in groups.items():
            found = compare_removals(classifier, *testing, unneeded=group, behind=behind, draws=draws, batch_size=128)
            pool = {layer: needed[layer] for layer in group if group[layer] and needed[layer]}
            sets = draw_sets(pool, group, draws, torch.Generator().manual_seed(0))
            more = removal_costs(classifier, *testing, sets=sets, behind=behind, batch_size=128)
            costs[what] = (found, mean_cost(sets, more)) if found and pool else None
    return costs


def compare(report: Report, data: str, networks: list[Costs]) -> None:
    """Report the accuracy lost as means over the networks, with the bounds that right verdicts must meet."""
    for what in networks[0]:
        found = [costs[what] for costs in networks if costs[what] is not None]
        if not found:
            report.add(f"{data} {what}: every filter is needed, or none", 0)
            continue
        kinds = list(zip(*((each.unneeded, each.random, needed) for each, needed in found), strict=True))
        unneeded, random, needed = (sum(cost.accuracy for cost in costs) / len(found) for costs in kinds)
        errors = [math.hypot(*(cost.errors[0] for cost in costs)) / len(found) for costs in kinds]
        figures = {"unneeded": unneeded, "random": random, "± random": errors[1], "needed": needed}
        silenced = sum(each.silenced.accuracy for each, _ in found) / len(found)
        what = f"{data} {what}, {sum(cost.size for cost in kinds[0])} taken away"
        report.add(f"{what}: silenced, no layer fitted", silenced)
        report.add(f"{what}: cost of unneeded less of random", unneeded - random, at_most=0, **figures)
        rise = [sum(cost.loss for cost in costs) / len(found) for costs in kinds]
        report.add(f"{what}: rise of the loss, unneeded less random", rise[0] - rise[1], at_most=0, needed=rise[2])
        apart = (needed - unneeded) / max(math.hypot(errors[0], errors[2]), 1e-9)
        report.add(f"{what}: cost of needed less of unneeded, in standard errors", apart, at_least=2)


def judge(classifier: Classifier, judging: Images) -> HealthRecords:
    """Return the verdicts on all layers, with importance measured on all images."""
    images, labels = judging
    return measure_health(classifier, Examples(images=images, labels=labels))
