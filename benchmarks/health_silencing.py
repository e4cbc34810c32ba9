"""What silencing filters costs, by verdict, and how structure rises over the epochs."""

import math
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from health_networks import Images, alexnet, fashion, finetune, flowers, from_scratch, partition, wide
from report import Report
from torch import Tensor

from filterscope.models.classifier import Classifier
from filterscope.models.layers import convolutions
from filterscope.probes.health.ablation import ablated, accuracy
from filterscope.probes.health.activity import activity
from filterscope.probes.health.classes import class_information
from filterscope.probes.health.similarity import duplicates
from filterscope.probes.health.structure import structure
from filterscope.probes.health.verdict import Verdict, verdicts
from filterscope.probes.health.watching import watch

UNSEEN = (1, 2)
"""Seeds of networks and partitions that no threshold of the verdict was chosen on; those were chosen on seed 0."""


def decisive(report: Report, quick: bool, real: Path) -> None:
    """What silencing filters costs: those judged not useful, random ones, useful ones."""
    size, draws = 128, 6 if quick else 20
    (images, labels), (more, their) = flowers(real, "train", size), flowers(real, "val", size)
    pool = torch.cat([images, more]), torch.cat([labels, their])
    for seed in UNSEEN[: 1 if quick else None]:
        torch.manual_seed(seed)
        classifier = alexnet(real, 102)
        train, seen, held = partition(pool, 1020, 510, 255 if quick else 510, seed=seed)
        finetune(classifier, train, epochs=3 if quick else 6)
        silence(report, f"flowers {seed}", classifier, seen, held, draws)
    count, tested = (6_000, 2_000) if quick else (20_000, 4_000)
    for seed in UNSEEN[: 1 if quick else None]:
        torch.manual_seed(seed)
        classifier, name = wide(), f"FashionMNIST {seed}"
        story(report, name, classifier)
        (train,) = partition(fashion(real, train=True, count=60_000), count, seed=seed)
        epochs = 4 if quick else 6
        from_scratch(classifier, train, epochs=epochs, each=partial(story, report, name, classifier))
        seen, held = partition(fashion(real, train=False, count=10_000), tested // 2, tested // 2, seed=seed)
        silence(report, name, classifier, seen, held, draws)


def story(report: Report, name: str, classifier: Classifier, epoch: int = 0) -> None:
    """The share of structured filters after an epoch."""
    for layer in convolutions(classifier.layers):
        p = structure(classifier.module_of(layer).weight.detach()).p
        what = f"{name} {layer}, epoch {epoch}: p < .05"
        report.add(what, float((p < 0.05).float().mean()), at_most=0.15 if epoch == 0 else None)


def silence(report: Report, name: str, classifier: Classifier, seen: Images, held: Images, draws: int) -> None:
    """Judge on `seen`, silence on `held`, layer by layer and in all layers at once."""
    whole = accuracy(classifier, *held)
    report.add(f"{name}: accuracy", whole)
    sets: dict[str, list[dict[str, Tensor]]] = {
        kind: [{} for _ in range(draws)] for kind in ("unused", "random", "useful")
    }
    for layer, said in judge(classifier, seen).items():
        kinds = [each.verdict for each in said]
        counts = {kind: kinds.count(kind) for kind in sorted(set(kinds))}
        rest = torch.tensor([i for i, kind in enumerate(kinds) if kind in ("noise", "idle", "dead")])
        useful = torch.tensor([i for i, kind in enumerate(kinds) if kind == "useful"])
        size = min(len(rest), len(useful))
        report.add(f"{name} {layer}: noise, idle and dead filters", len(rest), **counts)
        if size == 0:
            continue
        pools = {"unused": rest, "random": torch.arange(len(kinds)), "useful": useful}
        for kind, pool in pools.items():
            for drawn in sets[kind]:
                drawn[layer] = pool[torch.randperm(len(pool))[:size]]
        here = {kind: [{layer: drawn[layer]} for drawn in drawns] for kind, drawns in sets.items()}
        compare(report, f"{name} {layer}, {size} silenced", classifier, held, whole, here)
    compare(report, f"{name}, all layers at once", classifier, held, whole, sets)


def compare(
    report: Report,
    what: str,
    classifier: Classifier,
    held: Images,
    whole: float,
    sets: dict[str, list[dict[str, Tensor]]],
) -> None:
    """Report the three costs, and hold their differences against what a right verdict means."""
    lost = {}
    for kind, drawns in sets.items():
        costs: dict[tuple[tuple[int, ...], ...], float] = {}
        for drawn in drawns:
            key = tuple(tuple(sorted(filters.tolist())) for filters in drawn.values())
            if key not in costs:
                costs[key] = whole - without(classifier, held, drawn)
        lost[kind] = torch.tensor(list(costs.values()), dtype=torch.float64)
    mean = {kind: float(costs.mean()) for kind, costs in lost.items()}
    error = {kind: float(costs.std() / len(costs) ** 0.5) if len(costs) > 1 else 0.0 for kind, costs in lost.items()}
    more = {f"{kind} {figure}": each[kind] for kind in lost for figure, each in (("cost", mean), ("error", error))}
    report.add(f"{what}: cost of unused less of random", mean["unused"] - mean["random"], at_most=0, **more)
    joint = math.hypot(error["useful"], error["unused"])
    report.add(
        f"{what}: cost of useful less of unused, in standard errors",
        (mean["useful"] - mean["unused"]) / max(joint, 1e-9),
        at_least=2,
    )
    print("   ", {kind: f"{mean[kind]:.4f} ± {error[kind]:.4f}" for kind in mean}, flush=True)


def without(classifier: Classifier, held: Images, filters: dict[str, Tensor]) -> float:
    """Return the accuracy with filters of several layers silenced."""
    with ExitStack() as stack, torch.autocast("cpu", torch.bfloat16):
        for layer, some in filters.items():
            stack.enter_context(ablated(classifier, layer, some))
        return accuracy(classifier, *held, batch_size=128)


def judge(classifier: Classifier, seen: Images) -> dict[str, list[Verdict]]:
    """Return the verdicts on all layers."""
    layers = convolutions(classifier.layers)
    tallies, _ = watch(classifier, *seen, layers=layers)
    said = {}
    for layer in layers:
        kernels, acts = classifier.module_of(layer).weight.detach(), activity(tallies[layer])
        said[layer] = verdicts(
            structure=structure(kernels, together=layer == layers[0]),
            activity=acts,
            classes=class_information(tallies[layer]),
            duplicates=duplicates(kernels, acts.correlation),
        )
    return said
