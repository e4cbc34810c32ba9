"""Measure what is lost when filters that are not needed are cut out of a network and the rest is trained for one epoch.

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
from filterscope.models.filter_removal import cut_filters, multiply_adds
from filterscope.models.layers import convolutions
from filterscope.training.prune import removable_filters
from filterscope.visuals.health.health import Health
from filterscope.visuals.visual import Examples, VisualState

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
    """Cut a trained network by verdict and at random, and report accuracies, multiply-adds and time.

    Args:
        report: gets the figures.
        name: of the network.
        classifier: trained.
        train: trains a network for one epoch.
        images: to judge and to test on.
        least: the share of filters that is to go.
        seeds: number of random cuts.
    """
    judging, testing = images
    classifier.eval()
    state = VisualState()
    Health(importance=len(judging[0]))(classifier, Examples(images=judging[0], labels=judging[1]), state)
    wanted, merges = removable_filters(state.store["health"])
    total = sum(len(record["verdicts"]) for record in state.store["health"].values())
    before, cut = copy.deepcopy(classifier), copy.deepcopy(classifier)
    unmerged = {layer: [i for i in each if i not in merges.get(layer, {})] for layer, each in wanted.items()}
    masked, removed = copy.deepcopy(classifier), copy.deepcopy(classifier)
    gone = cut_filters(removed, unmerged).filters
    with torch.no_grad(), ablated(masked, gone):
        difference = float((masked(testing[0][:64]) - removed(testing[0][:64])).abs().max())
    report.add(f"{name}: largest difference of a logit, removed against silenced", difference, at_most=1e-5)
    done = cut_filters(cut, wanted, merges=merges)
    share = sum(map(len, done.filters.values())) / total
    merged = sum(map(len, done.merged.values()))
    report.add(f"{name}: share of the filters that is cut", share, at_least=least, merged=merged)
    start, after_cut = accuracy(before, *testing), accuracy(cut, *testing)
    train(cut)
    train(before)
    lost = accuracy(before, *testing) - accuracy(cut, *testing)
    more = {"as trained": start, "after the cut": after_cut, "uncut, one epoch more": accuracy(before, *testing)}
    what = f"{name}: accuracy lost after one epoch, against the uncut network after that epoch"
    report.add(what, lost, at_most=0.003, **more)
    operations = multiply_adds(cut) / multiply_adds(before)
    batch = testing[0][:64]
    with torch.no_grad():
        faster = ratio(lambda: before.eval()(batch), lambda: cut.eval()(batch), repetitions=7, processor=True).times
    report.add(f"{name}: share of the multiply-adds that is left", operations)
    report.add(f"{name}: speed-up of a forward pass", faster, at_least=1, **{"by multiply-adds": 1 / operations})
    worse = []
    for seed in range(seeds):
        other = random_cut(classifier, multiply_adds(cut), seed)
        train(other)
        worse.append(accuracy(cut, *testing) - accuracy(other, *testing))
    if worse:
        what = f"{name}: accuracy above that of random cuts of as many multiply-adds, smallest of {seeds}"
        report.add(what, min(worse), at_least=0.02, all=worse)


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
