"""Is the verdict on filters right? Nulls, separation, planted answers, and what silencing filters costs.

    FILTERSCOPE_REAL=<folder> python benchmarks/health.py [--quick] [--json FILE] [--only calibration,separation,…]

Without real data only the calibration is measured.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from health_networks import Images, alexnet, fashion, finetune, flowers, from_scratch, wide
from report import Report, arguments, real_data, seconds
from scipy.stats import kstest, rankdata
from torch import Tensor, nn

from filterscope.models.classifier import Classifier
from filterscope.models.layers import convolutions
from filterscope.models.weights import read_tensors
from filterscope.probes.health.ablation import ablated, accuracy
from filterscope.probes.health.activity import activity
from filterscope.probes.health.classes import class_information
from filterscope.probes.health.similarity import drift, duplicates, linear_cka
from filterscope.probes.health.spectrum import natural_preference, random_twin
from filterscope.probes.health.structure import structure
from filterscope.probes.health.tally import Tally
from filterscope.probes.health.verdict import Verdict, verdicts
from filterscope.probes.health.watching import recording, watch

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
    """Raw p and Benjamini–Hochberg on random initialisations of every kernel shape."""
    wanted = 1_000 if quick else 10_000
    layers, flagged, below, filters = 0, 0, 0, 0
    for shape in [shape for shapes in SHAPES.values() for shape in shapes]:
        made = math.ceil(wanted / shape[0])
        below_here = 0
        for i in range(made):
            kernels = list(INITIALISATIONS.values())[i % 3](torch.empty(*shape, shape[2]))
            found = structure(kernels, together=shape[1] == 3, seed=i)
            below_here += int((found.p <= 0.05 + 1e-6).sum())  # exactly 15 of 300 ranks
            flagged += bool(found.structured.any())
        rate, name = below_here / (made * shape[0]), f"random {shape[0]}×{shape[1]}×{shape[2]}×{shape[2]}: p ≤ .05"
        # A quick run's filters and layers are too few to hold one shape, or layers, against the bounds.
        report.add(name, rate, at_most=None if quick else 0.06, filters=made * shape[0])
        layers, below, filters = layers + made, below + below_here, filters + made * shape[0]
    report.add("random, all shapes: p ≤ .05, above", below / filters, at_least=0.04, filters=filters)
    report.add("random, all shapes: p ≤ .05, below", below / filters, at_most=0.06, filters=filters)
    report.add("random layers with anything flagged", flagged / layers, at_most=None if quick else 0.05, layers=layers)


def separation(report: Report, quick: bool, real: Path) -> None:
    """Real kernels against random twins and their own shuffles."""
    del quick
    for name, least in (("alexnet", 0.99), ("vgg16", 0.97)):
        weights = read_tensors(real / "weights" / f"{name}_features.pth").values()
        kernels = [tensor for tensor in weights if tensor.dim() == 4]
        took, areas = 0.0, []
        for i, layer in enumerate(kernels):
            first = i == 0
            took += seconds(lambda layer=layer, first=first: structure(layer, together=first))
            found = structure(layer, together=first)
            twin = structure(torch.randn(layer.shape), together=first).z
            shuffled = structure(shuffle(layer, together=first), together=first).z
            both = min(auroc(found.z, twin), auroc(found.z, shuffled))
            hard = name == "vgg16" and first
            what = f"{name} conv {i + 1} ({'×'.join(map(str, layer.shape))}): AUROC, the lower of twins and shuffles"
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
    tallies, responses = watch(classifier, images, layers=["block2_conv1"])
    named = activity(tallies["block2_conv1"]).dead
    alive = watch(alexnet(real, 10).eval(), images, layers=["block2_conv1"])[0]["block2_conv1"]
    natural = activity(alive).dead
    natural[dead] = True
    report.add("planted dead filters: wrongly said of how many", float((named != natural).sum()), at_most=0)
    for layer in ("block1_conv1", "block2_conv1"):
        original, first = classifier.module_of(layer).weight.detach(), layer == "block1_conv1"
        hit, false, found, said, true = 0, 0, 0, 0, 0
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
            found, said, true = found + len(pairs & right), said + len(pairs), true + len(right)
        report.add(f"{layer}: planted noise, recall", hit / (repetitions * fifth), at_least=0.9)
        report.add(f"{layer}: others called noise", false / (repetitions * (len(original) - fifth)), at_most=0.05)
        report.add(f"{layer}: planted copies, recall", found / true, at_least=1)
        report.add(f"{layer}: planted copies, precision", found / max(said, 1), at_least=0.95)
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
        tally = Tally.empty(filters=1, classes=5)
        tally.add(responses[:, :, None, None], labels[torch.randperm(len(labels), generator=generator)])
        p.append(float(class_information(tally).p))
    return float(kstest(p, "uniform").pvalue)


def natural(report: Report, quick: bool, real: Path) -> None:
    """The response to natural structure of the pretrained network and of its random twin."""
    images, _ = flowers(real, "val", 96)
    images = images[:: 32 if quick else 8]
    classifier = alexnet(real, 10).eval()
    layers = convolutions(classifier.layers)
    own = natural_preference(classifier, images, layers=layers)
    twin = natural_preference(random_twin(classifier), images, layers=layers)
    for layer in layers:
        area = auroc(own[layer].abs(), twin[layer].abs())
        medians = {"pretrained": float(own[layer].abs().median()), "random": float(twin[layer].abs().median())}
        report.add(f"{layer}: AUROC of natural preference, pretrained against random", area, at_least=0.8, **medians)


def watching(report: Report, quick: bool, real: Path) -> None:
    """What health adds to an epoch of AlexNet on flowers (1020 images to train on, 1020 to validate), 224 px.

    Processor time counts, which other work on the machine disturbs least.
    """
    classifier, images = alexnet(real, 102).eval(), torch.rand(64, 3, 224, 224)
    labels, layers = torch.arange(64), convolutions(classifier.layers)
    kernels = [classifier.module_of(layer).weight.detach() for layer in layers]

    def validate() -> None:
        with torch.no_grad():
            classifier(images)

    def watched() -> None:
        with torch.no_grad(), recording(classifier, layers) as recorder:
            classifier(images)
            recorder.add(labels)

    def step() -> None:
        torch.autograd.grad(classifier(images).sum(), list(classifier.parameters()))

    def tested() -> None:
        for i, layer in enumerate(kernels):
            structure(layer, together=i == 0)

    times: dict[Callable[[], None], list[float]] = {validate: [], watched: [], step: [], tested: []}
    for work in [*times] * (4 if quick else 12):
        start = time.process_time()
        work()
        times[work].append(time.process_time() - start)
    # The first round is warming up.
    took = {work: statistics.median(each[1:]) for work, each in times.items()}
    batches = 1020 / 64
    epoch = batches * (took[step] + took[validate])
    extra = batches * (took[watched] - took[validate])
    report.add("alexnet on flowers: share of an epoch that goes into watching", extra / epoch)
    report.add("alexnet on flowers: share of an epoch that goes into structure", took[tested] / epoch)
    report.add("alexnet on flowers: share of an epoch, both", (extra + took[tested]) / epoch, at_most=0.05)


def decisive(report: Report, quick: bool, real: Path) -> None:
    """What silencing filters costs: those judged not useful, random ones, useful ones."""
    size, draws = 128, 6 if quick else 20
    torch.manual_seed(0)
    classifier = alexnet(real, 102)
    finetune(classifier, flowers(real, "train", size), epochs=3 if quick else 6)
    images, labels = flowers(real, "val", size)
    half = torch.randperm(len(images))
    seen, held = half[:510], half[510 : 510 + (255 if quick else 510)]
    silence(report, "flowers", classifier, (images[seen], labels[seen]), (images[held], labels[held]), draws)
    torch.manual_seed(0)
    classifier = wide()
    count = 6_000 if quick else 20_000
    story(report, classifier)
    from_scratch(
        classifier,
        fashion(real, train=True, count=count),
        epochs=4 if quick else 6,
        each=lambda epoch: story(report, classifier, epoch),
    )
    images, labels = fashion(real, train=False, count=2_000 if quick else 4_000)
    half_way = len(images) // 2
    judge_on, ablate_on = (images[:half_way], labels[:half_way]), (images[half_way:], labels[half_way:])
    silence(report, "FashionMNIST", classifier, judge_on, ablate_on, draws)


def story(report: Report, classifier: Classifier, epoch: int = 0) -> None:
    """The share of structured filters after an epoch."""
    for layer in convolutions(classifier.layers):
        p = structure(classifier.module_of(layer).weight.detach()).p
        what = f"FashionMNIST {layer}, epoch {epoch}: p < .05"
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


def shuffle(kernels: Tensor, *, together: bool) -> Tensor:
    """Return the kernels with the positions of each slice (or of all slices alike) in random order."""
    flat = kernels.flatten(2)
    order = torch.rand(len(flat), 1 if together else flat.shape[1], flat.shape[2]).argsort(2).expand_as(flat)
    return flat.gather(2, order).view_as(kernels)


def auroc(high: Tensor, low: Tensor) -> float:
    """Return the probability that one of `high` is larger than one of `low`."""
    ranks = rankdata(torch.cat([high, low]).numpy())[: len(high)]
    return float((ranks.sum() - len(high) * (len(high) + 1) / 2) / (len(high) * len(low)))


def main(parts: Sequence[str]) -> int:
    """Run the parts asked for."""
    options = arguments(__doc__.splitlines()[0], only={"default": ",".join(parts), "metavar": "PARTS"})
    report, real = Report("health"), real_data()
    torch.manual_seed(0)
    for part in options.only.split(","):
        if part == "calibration":
            calibration(report, options.quick)
        elif real is not None:
            PARTS[part](report, options.quick, real)
    return 0 if report.show(options.json) else 1


PARTS = {"separation": separation, "planted": planted, "natural": natural, "watching": watching, "decisive": decisive}

if __name__ == "__main__":
    raise SystemExit(main(["calibration", *PARTS]))
