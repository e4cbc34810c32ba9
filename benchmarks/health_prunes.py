"""Measure what is lost when filters are cut out of a network, by verdict and by importance, and the rest is trained on.

    FILTERSCOPE_REAL=<folder> python benchmarks/health_prunes.py [--quick] [--json FILE] [--only flowers,fashion]

Filters are judged on one part of the images that the network was not trained on, accuracy is measured on another.
"""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from health_networks import Images, alexnet, fashion, finetune, flowers, from_scratch, partition, wide
from health_networks import train as train_network
from report import Report, arguments, ratio, real_data

from filterscope.analysis.health.causes import ablated, accuracy
from filterscope.models.classifier import Classifier
from filterscope.models.filter_removal import Merge, cut_filters, multiply_adds
from filterscope.models.layers import convolutions
from filterscope.training.prune import least_important, removable_filters
from filterscope.visuals.health.health import measure_health
from filterscope.visuals.visual import Examples

Train = Callable[[Classifier], None]


def prune(
    report: Report,
    name: str,
    classifier: Classifier,
    train: Train,
    images: tuple[Images, Images],
    *,
    least: float,
    seeds: int,
) -> None:
    """Cut a trained network by verdict, by importance and at random, train for one epoch, and report what is left.

    Args:
        report: gets the figures.
        name: of the network.
        classifier: trained.
        train: trains a network for one epoch.
        images: to judge and to test on.
        least: the share of filters that is cut by importance.
        seeds: number of random cuts.
    """
    judging, testing = images
    classifier.eval()
    records = measure_health(classifier, Examples(images=judging[0], labels=judging[1]))
    unneeded, merges = removable_filters(records)
    report_exactness(report, name, classifier, testing, unneeded, merges)
    before = copy.deepcopy(classifier)
    train(before)
    trained = accuracy(before, *testing)
    for how, wanted, merged in (
        ("by verdict", unneeded, merges),
        ("by importance", least_important(records, least), {}),
    ):
        cut = copy.deepcopy(classifier)
        done = cut_filters(cut, wanted, merges=merged)
        share = sum(map(len, done.filters.values())) / sum(len(record["verdicts"]) for record in records.values())
        copies = sum(map(len, done.merged.values()))
        report.add(f"{name}, {how}: share of the filters that is cut", share, merged=copies)
        after_cut = accuracy(cut, *testing)
        train(cut)
        lost, more = trained - accuracy(cut, *testing), {"uncut, one epoch more": trained, "after the cut": after_cut}
        what = f"{name}, {how}: accuracy lost after one epoch, against the uncut network after that epoch"
        report.add(what, lost, at_most=0.003, **more)
        operations = multiply_adds(cut) / multiply_adds(before)
        batch = testing[0][:64]
        with torch.no_grad():
            faster = ratio(partial(before.eval(), batch), partial(cut.eval(), batch), repetitions=7, processor=True)[0]
        report.add(f"{name}, {how}: share of the multiply-adds that is left", operations)
        report.add(
            f"{name}, {how}: speed-up of a forward pass", faster, at_least=1, **{"by multiply-adds": 1 / operations}
        )
    worse = []
    for seed in range(seeds):
        other = random_cut(classifier, multiply_adds(cut), seed)
        train(other)
        worse.append(accuracy(cut, *testing) - accuracy(other, *testing))
    if worse:
        what = f"{name}, by importance: accuracy above random cuts of as many multiply-adds, smallest of {seeds}"
        report.add(what, min(worse), at_least=0.02, all=worse)


def report_exactness(
    report: Report,
    name: str,
    classifier: Classifier,
    testing: Images,
    wanted: dict[str, list[int]],
    merges: dict[str, dict[int, Merge]],
) -> None:
    """Report how far the logits of the cut network are from those with the same filters silenced, and merged."""
    pixels, masked, removed = testing[0][:64], copy.deepcopy(classifier), copy.deepcopy(classifier)
    gone = cut_filters(
        removed, {layer: [i for i in each if i not in merges.get(layer, {})] for layer, each in wanted.items()}
    )
    with torch.no_grad(), ablated(masked, gone.filters):
        difference = float((masked(pixels) - removed(pixels)).abs().max())
    report.add(f"{name}: largest difference of a logit, removed against silenced", difference, at_most=1e-5)
    if merges:
        merged = copy.deepcopy(classifier)
        cut_filters(merged, {layer: list(each) for layer, each in merges.items()}, merges=merges)
        with torch.no_grad():
            change = float((merged(pixels) - classifier(pixels)).abs().max())
        lost = accuracy(classifier, *testing) - accuracy(merged, *testing)
        more = {"largest change of a logit": change, "copies": sum(map(len, merges.values()))}
        report.add(f"{name}: accuracy lost by merging copies", lost, at_most=0.003, **more)


def random_cut(classifier: Classifier, operations: int, seed: int) -> Classifier:
    """Return a copy without random filters, the same share in every layer, with at most so many multiply-adds."""
    generator = torch.Generator().manual_seed(seed)
    counts = {name: len(classifier.module_of(name).weight) for name in convolutions(classifier.layers)}
    orders = {name: torch.randperm(count, generator=generator) for name, count in counts.items()}
    for percent in range(2, 100, 2):
        other = copy.deepcopy(classifier)
        cut_filters(other, {name: order[: len(order) * percent // 100].tolist() for name, order in orders.items()})
        if multiply_adds(other) <= operations:
            break
    return other


def on_flowers(report: Report, real: Path, quick: bool) -> None:
    """Prune AlexNet finetuned on flowers."""
    (images, labels), (more, their) = flowers(real, "train", 128), flowers(real, "val", 128)
    torch.manual_seed(1)
    classifier = alexnet(real, 102)
    data, judging, testing = partition((torch.cat([images, more]), torch.cat([labels, their])), 1020, 510, 510, seed=1)
    finetune(classifier, data, epochs=3 if quick else 6)
    train = partial(finetune, data=data, epochs=1)
    prune(report, "AlexNet on flowers", classifier, train, (judging, testing), least=0.25, seeds=1 if quick else 5)


def on_fashion(report: Report, real: Path, quick: bool) -> None:
    """Prune three convolutions trained on FashionMNIST."""
    torch.manual_seed(1)
    classifier = wide()
    (data,) = partition(fashion(real, train=True, count=60_000), 6_000 if quick else 20_000, seed=1)
    from_scratch(classifier, data, epochs=4 if quick else 6)
    judging, testing = partition(fashion(real, train=False, count=10_000), 1000, 3000, seed=1)

    def train(network: Classifier) -> None:
        optimizer = torch.optim.SGD(network.parameters(), lr=0.005, momentum=0.9, weight_decay=1e-3)
        train_network(network, data, optimizer, epochs=1, batch_size=64)

    prune(report, "FashionMNIST", classifier, train, (judging, testing), least=0.5, seeds=1 if quick else 5)


def main() -> int:
    """Run the networks asked for."""
    options = arguments(__doc__.splitlines()[0], only={"default": "flowers,fashion", "metavar": "NETWORKS"})
    report, real = Report("health_prunes"), real_data()
    if real is None:
        print("set FILTERSCOPE_REAL to a folder of real data: nothing is measured without it")
        return 0
    for part in options.only.split(","):
        {"flowers": on_flowers, "fashion": on_fashion}[part](report, real, options.quick)
    return 0 if report.show(options.json) else 1


if __name__ == "__main__":
    raise SystemExit(main())
