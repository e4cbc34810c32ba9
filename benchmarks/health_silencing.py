"""Measure the accuracy lost by silencing filters, by verdict, and the growth of structure over the epochs."""

import math
from functools import partial
from pathlib import Path

import torch
from health_networks import Images, alexnet, fashion, finetune, flowers, from_scratch, partition, wide
from report import Report

from filterscope.analysis.health.causes import Silencing, accuracy, silencing
from filterscope.analysis.health.structure import structure
from filterscope.analysis.health.verdict import Verdict
from filterscope.models.classifier import Classifier
from filterscope.models.layers import convolutions
from filterscope.visuals.health.health import measure_health
from filterscope.visuals.visual import Examples

KINDS = ("unused", "random", "needed")
UNSEEN = (1, 2, 3)
"""Seeds of networks and partitions; the thresholds of the verdicts were chosen on seed 0 only."""


def decisive(report: Report, quick: bool, real: Path) -> None:
    """Measure the cost of silencing filters that are not needed, random and needed ones; mean of three networks."""
    size, draws, seeds = 128, 6 if quick else 20, UNSEEN[: 1 if quick else None]
    (images, labels), (more, their) = flowers(real, "train", size), flowers(real, "val", size)
    pool = torch.cat([images, more]), torch.cat([labels, their])
    found = []
    for seed in seeds:
        torch.manual_seed(seed)
        classifier = alexnet(real, 102)
        train, judging, testing = partition(pool, 1020, 510, 255 if quick else 510, seed=seed)
        finetune(classifier, train, epochs=3 if quick else 6)
        found.append(silence(report, f"flowers, network {seed}", classifier, judging, testing, draws))
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
        found.append(silence(report, name, classifier, judging, testing, draws))
    compare(report, "FashionMNIST", found)


def story(report: Report, name: str, classifier: Classifier, epoch: int = 0) -> None:
    """Report the share of structured filters after an epoch."""
    for layer in convolutions(classifier.layers):
        p = structure(classifier.module_of(layer).weight.detach()).p
        what = f"{name} {layer}, epoch {epoch}: p < .05"
        report.add(what, float((p < 0.05).float().mean()), at_most=0.15 if epoch == 0 else None)


Costs = dict[str, Silencing | None]
"""The costs of one network, by layer and for all layers at once; None if there was nothing to silence."""


def silence(report: Report, name: str, classifier: Classifier, judging: Images, testing: Images, draws: int) -> Costs:
    """Judge on the images `judging`, silence on the images `testing`, layer by layer and in all layers at once."""
    judgements = judge(classifier, judging)
    report.add(f"{name}: accuracy", accuracy(classifier, *testing))
    for layer, kinds in judgements.items():
        counts = {kind: kinds.count(kind) for kind in sorted(set(kinds))}
        rest = sum(Verdict(kind).unused for kind in kinds)
        report.add(f"{name} {layer}: noise, idle and dead filters", rest, **counts)
    groups = {layer: {layer: kinds} for layer, kinds in judgements.items()} | {"all layers at once": judgements}
    with torch.autocast("cpu", torch.bfloat16):
        return {
            what: silencing(classifier, *testing, verdicts=verdicts, draws=draws, batch_size=128)
            for what, verdicts in groups.items()
        }


def compare(report: Report, data: str, networks: list[Costs]) -> None:
    """Report the three costs as means over the networks, with the bounds that right verdicts must meet."""
    for what in networks[0]:
        found = [costs[what] for costs in networks if costs[what] is not None]
        if not found:
            report.add(f"{data} {what}: nothing to silence", 0)
            continue
        count = len(found)
        unused, random, needed = (sum(getattr(each, k) for each in found) / count for k in KINDS)
        errors = [math.hypot(*(each.errors[i] for each in found)) / count for i in range(3)]
        figures = {"unused": unused, "random": random, "± random": errors[1], "needed": needed, "± needed": errors[2]}
        what = f"{data} {what}, {sum(each.size for each in found)} silenced"
        report.add(f"{what}: cost of unused less of random", unused - random, at_most=0, **figures)
        apart = (needed - unused) / max(math.hypot(errors[0], errors[2]), 1e-9)
        report.add(f"{what}: cost of needed less of unused, in standard errors", apart, at_least=2)


def judge(classifier: Classifier, judging: Images) -> dict[str, list[str]]:
    """Return the verdicts on all layers, with importance measured on all images."""
    images, labels = judging
    records = measure_health(classifier, Examples(images=images, labels=labels))
    return {layer: record["verdicts"] for layer, record in records.items()}
