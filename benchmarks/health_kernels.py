"""Test the measures of kernels: calibration on noise, separation of real weights, and planted answers."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from health_networks import alexnet, flowers
from report import Report, seconds
from scipy.stats import binom, kstest, rankdata
from torch import Tensor, nn

from filterscope.analysis.health.activity import BatchActivity, RunningSums, activity
from filterscope.analysis.health.causes import natural_preference, reinitialized_copy
from filterscope.analysis.health.classes import class_information
from filterscope.analysis.health.input_weights import INPUTS, weighing
from filterscope.analysis.health.recorder import record_activity
from filterscope.analysis.health.similarity import drift, duplicates, linear_cka
from filterscope.analysis.health.structure import structure
from filterscope.models.layers import convolutions
from filterscope.models.weights import read_weights

SHAPES = {
    "alexnet": [(64, 3, 11), (192, 64, 5), (384, 192, 3), (256, 384, 3), (256, 256, 3)],
    "vgg": [(64, 3, 3), (64, 64, 3), (128, 64, 3), (128, 128, 3), (256, 128, 3), (512, 256, 3), (512, 512, 3)],
}

INITIALISATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "torch": lambda kernels: nn.init.kaiming_uniform_(kernels, a=math.sqrt(5)),
    "He": nn.init.kaiming_normal_,
    "Xavier": nn.init.xavier_uniform_,
}


def calibration(report: Report, quick: bool) -> None:
    """Measure raw p and Benjamini–Hochberg on random initialisations of every kernel shape."""
    wanted = 1_000 if quick else 10_000
    layers, flagged, below, filters = 0, 0, 0, 0
    for shape in [shape for shapes in SHAPES.values() for shape in shapes]:
        small = math.prod((*shape, shape[2])) < 40_000  # of which many take no time
        made, below_here = max(math.ceil(wanted / shape[0]), 200 if small else 0), 0
        for i in range(made):
            kernels = list(INITIALISATIONS.values())[i % 3](torch.empty(*shape, shape[2]))
            found = structure(kernels, together=shape[1] == 3, seed=layers + i)
            below_here += int((found.p <= 0.05 + 1e-6).sum())  # exactly 15 of 300 ranks
            flagged += bool(found.structured.any())
        rate, name = below_here / (made * shape[0]), f"random {shape[0]}×{shape[1]}×{shape[2]}×{shape[2]}: p ≤ .05"
        # A quick run has too few filters of most shapes for the bound.
        report.add(name, rate, at_most=None if quick else 0.06, filters=made * shape[0])
        layers, below, filters = layers + made, below + below_here, filters + made * shape[0]
    report.add("random, all shapes: p ≤ .05, above", below / filters, at_least=0.04, filters=filters)
    report.add("random, all shapes: p ≤ .05, below", below / filters, at_most=0.06, filters=filters)
    # What a rate of .05 exceeds in one of a hundred runs.
    most = float(binom.ppf(0.99, layers, 0.05)) / layers
    report.add("random layers with anything flagged", flagged / layers, at_most=most, layers=layers)


def input_weights(report: Report, quick: bool, real: Path) -> None:
    """Measure the test of how kernels weigh their inputs, on random and on real weights."""
    wanted = 1_000 if quick else 10_000
    for shape in [shape for shapes in SHAPES.values() for shape in shapes if shape[1] >= INPUTS]:
        made = math.ceil(wanted / shape[0])
        draws = [list(INITIALISATIONS.values())[i % 3](torch.empty(*shape, shape[2])) for i in range(made)]
        p = torch.cat([weighing(kernels).p for kernels in draws])
        name = f"random {shape[0]}×{shape[1]}×{shape[2]}×{shape[2]}: p of uneven inputs ≤ .05"
        report.add(name, float((p <= 0.05).double().mean()), at_most=None if quick else 0.06, filters=len(p))
    for name in ("alexnet", "vgg16"):
        weights, _ = read_weights(real / "weights" / f"{name}_features.pth")
        for i, layer in enumerate(tensor for tensor in dict(weights).values() if tensor.dim() == 4):
            if weighing(layer).testable:
                share = float(weighing(layer).uneven.double().mean())
                report.add(f"{name} conv {i + 1}: share of filters with uneven inputs", share, at_least=0.9)


def separation(report: Report, quick: bool, real: Path) -> None:
    """Measure how well real kernels are separated from random kernels and from their own shuffles."""
    del quick
    for name, least in (("alexnet", 0.99), ("vgg16", 0.97)):
        weights, _ = read_weights(real / "weights" / f"{name}_features.pth")
        kernels = [tensor for tensor in dict(weights).values() if tensor.dim() == 4]
        took, areas = 0.0, []
        for i, layer in enumerate(kernels):
            first = i == 0
            took += seconds(lambda layer=layer, first=first: structure(layer, together=first))
            found = structure(layer, together=first)
            random = structure(torch.randn(layer.shape), together=first).z
            shuffled = structure(shuffle(layer, together=first), together=first).z
            both = min(auroc(found.z, random), auroc(found.z, shuffled))
            hard = name == "vgg16" and first
            what = f"{name} conv {i + 1} ({'×'.join(map(str, layer.shape))}): AUROC, the lower of random and shuffled"
            report.add(what, both, at_least=None if hard else least, flagged=float((found.p < 0.05).float().mean()))
            areas += [] if hard else [both]
        if name == "vgg16":
            report.add("vgg16: mean AUROC of twelve", sum(areas) / len(areas), at_least=0.99)
            power(report, kernels[2], kernels[4])
        report.add(f"{name}: seconds for all layers", took)


def power(report: Report, *layers: Tensor) -> None:
    """How many real filters are found in kernels as small as the verdict still judges."""
    rate = torch.cat([structure(layer[:, :16]).p < 0.05 for layer in layers]).float().mean()
    report.add("vgg16, 16 of the slices of two layers: found at p < .05", float(rate), at_least=0.8)


def planted(report: Report, quick: bool, real: Path) -> None:
    """Dead, copied and noisy filters, a frozen layer and shuffled labels, planted in the real AlexNet."""
    classifier = alexnet(real, 10).eval()
    images = torch.rand(16, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    dead = torch.arange(3, 192, 17)
    with torch.no_grad():
        classifier.module_of("block2_conv1").bias[dead] = -1e3
    sums, responses = record_activity(classifier, images, layers=["block2_conv1"])
    named = activity(sums["block2_conv1"]).dead
    alive = record_activity(alexnet(real, 10).eval(), images, layers=["block2_conv1"])[0]["block2_conv1"]
    natural = activity(alive).dead
    natural[dead] = True
    report.add("planted dead filters: number of wrong verdicts", float((named != natural).sum()), at_most=0)
    for layer in ("block1_conv1", "block2_conv1"):
        original, first = classifier.module_of(layer).weight.detach(), layer == "block1_conv1"
        hit, false, found, claimed, true = 0, 0, 0, 0, 0
        repetitions, fifth = (3 if quick else 20), len(original) // 5
        for seed in range(repetitions):
            order = torch.randperm(len(original), generator=torch.Generator().manual_seed(seed))
            kernels = original.clone()
            noise = torch.randn(fifth, *kernels.shape[1:])
            size = kernels[order[:fifth]].flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1)
            kernels[order[:fifth]] = noise * size[:, None, None, None]
            structured = structure(kernels, together=first, seed=seed).structured
            hit += int((~structured[order[:fifth]]).sum())
            false += int((~structured[order[fifth:]]).sum())
            copies, sources = order[-10:], order[-20:-10]
            kernels[copies] = kernels[sources] * torch.linspace(0.1, 1, 10)[:, None, None, None]
            of = duplicates(kernels).of
            pairs = {frozenset((i, int(k))) for i, k in enumerate(of) if k >= 0}
            right = {frozenset(pair) for pair in zip(copies.tolist(), sources.tolist(), strict=True)}
            found, claimed, true = found + len(pairs & right), claimed + len(pairs), true + len(right)
        report.add(f"{layer}: planted noise, recall", hit / (repetitions * fifth), at_least=0.9)
        report.add(f"{layer}: others called noise", false / (repetitions * (len(original) - fifth)), at_most=0.05)
        report.add(f"{layer}: planted copies, recall", found / true, at_least=1)
        report.add(f"{layer}: planted copies, precision", found / max(claimed, 1), at_least=0.95)
    still = responses["block2_conv1"]
    report.add("frozen layer: largest drift", float(drift(original, original.clone()).distance.max()), at_most=0)
    report.add("frozen layer: CKA", linear_cka(still, still.clone()), at_least=1)
    report.add("shuffled labels: Kolmogorov–Smirnov p", shuffled_labels(still[:, :1], quick), at_least=0.01)


def shuffled_labels(responses: Tensor, quick: bool) -> float:
    """Return how well p of one filter under many shuffles of the labels fits the uniform distribution."""
    generator, p = torch.Generator().manual_seed(0), []
    responses = responses.repeat(8, 1) * torch.rand(8 * len(responses), 1, generator=generator)
    labels = torch.arange(len(responses)) % 7 % 5
    for _ in range(200 if quick else 2000):
        sums = RunningSums(filters=1, classes=5)
        batch = BatchActivity.of_outputs(responses[:, :, None, None])
        sums.update(batch, labels[torch.randperm(len(labels), generator=generator)])
        p.append(float(class_information(sums).p))
    return float(kstest(p, "uniform").pvalue)


def natural(report: Report, quick: bool, real: Path) -> None:
    """Measure the response to natural structure of the pretrained network and of a re-initialised copy."""
    images, _ = flowers(real, "val", 96)
    images = images[:: 32 if quick else 8]
    classifier = alexnet(real, 10).eval()
    layers = convolutions(classifier.layers)
    own = natural_preference(classifier, images, layers=layers)
    copy = natural_preference(reinitialized_copy(classifier), images, layers=layers)
    for layer in layers:
        area = auroc(own[layer].abs(), copy[layer].abs())
        medians = {"pretrained": float(own[layer].abs().median()), "random": float(copy[layer].abs().median())}
        report.add(f"{layer}: AUROC of natural preference, pretrained against random", area, at_least=0.8, **medians)


def shuffle(kernels: Tensor, *, together: bool) -> Tensor:
    """Return the kernels with the positions of each slice (or of all slices alike) in random order."""
    flat = kernels.flatten(2)
    order = torch.rand(len(flat), 1 if together else flat.shape[1], flat.shape[2]).argsort(2).expand_as(flat)
    return flat.gather(2, order).view_as(kernels)


def auroc(high: Tensor, low: Tensor) -> float:
    """Return the probability that one of `high` is larger than one of `low`."""
    ranks = rankdata(torch.cat([high, low]).numpy())[: len(high)]
    return float((ranks.sum() - len(high) * (len(high) + 1) / 2) / (len(high) * len(low)))
