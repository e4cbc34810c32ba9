"""Measure what is lost when filters are cut out by verdict and by importance, and what filters become if recycled.

    FILTERSCOPE_REAL=<folder> python benchmarks/health_prunes.py [--quick] [--json FILE] [--keep FOLDER]
        [--only flowers,fashion,recycling]

Filters are judged on one part of the images that the network was not trained on, accuracy is measured on another.
All figures are means over networks from five seeds (--quick: one), each with a random cut of its own. Networks are
trained until their learning rate is 0, so that what the epoch after the cut brings is not what they lacked before.
Recycling is measured in runs of `train.py` with and without it.
"""

import copy
import csv
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from health_networks import Images, alexnet, falling, fashion, finetune, flowers, from_scratch, partition, wide
from health_networks import train as train_network
from report import Report, arguments, kept, ratio, real_data
from torch import Tensor

from filterscope.analysis.health.causes import ablated, accuracy
from filterscope.models.classifier import Classifier
from filterscope.models.filter_removal import cut_filters, multiply_adds
from filterscope.models.layers import convolutions
from filterscope.training.prune import judge_for_cut, least_important
from filterscope.visuals.health.findings import HealthRecords, removable_filters
from filterscope.visuals.visual import Examples

Train = Callable[[Classifier], None]


Figures = dict[str, float]


def prune(classifier: Classifier, train: Train, images: tuple[Images, Images], *, least: float, seed: int) -> Figures:
    """Cut a trained network by verdict, by importance and at random, train for one epoch, and return what is left.

    Args:
        classifier: trained.
        train: trains a network for one epoch.
        images: to judge and to test on.
        least: the share of filters that is cut by importance.
        seed: of the random cut.
    """
    judging, testing = images
    classifier.eval()

    def train_on(network: Classifier) -> None:
        torch.manual_seed(seed)  # the same batches for all
        train(network)

    records = judge_for_cut(classifier, Examples(images=judging[0], labels=judging[1]))
    filters = sum(len(record["verdicts"]) for record in records.values())
    unneeded = removable_filters(records)
    found = exactness(classifier, testing, unneeded) | without_copies(classifier, images, records)
    uncut = copy.deepcopy(classifier)
    found["accuracy before the cut"] = before = accuracy(uncut, *testing)
    train_on(uncut)
    found["accuracy of the uncut network after one more epoch"] = trained = accuracy(uncut, *testing)
    for how, wanted in {"by verdict": unneeded, "by importance": least_important(records, least)}.items():
        cut, silent = copy.deepcopy(classifier), copy.deepcopy(classifier)
        done = cut_filters(cut, wanted, images=judging[0])
        cut_filters(silent, wanted)
        operations, batch = multiply_adds(cut) / multiply_adds(uncut), testing[0][:64]
        with torch.no_grad():
            faster = ratio(partial(uncut.eval(), batch), partial(cut.eval(), batch), repetitions=7, processor=True)[0]
        figures = {
            "share of the filters that is cut": sum(map(len, done.filters.values())) / filters,
            "share of the multiply-adds that is left": operations,
            "speed-up of a forward pass": faster,
            "accuracy before training, later layers not fitted": accuracy(silent, *testing),
            "accuracy before training": accuracy(cut, *testing),
        }
        train_on(cut)
        left = accuracy(cut, *testing)
        figures["accuracy lost after one epoch"] = before - left
        figures["accuracy lost after one epoch, against the uncut network after that epoch"] = trained - left
        if how == "by importance":
            train_on(silent)
            figures["accuracy lost after one epoch, later layers not fitted"] = before - accuracy(silent, *testing)
            for fitted, name in ((None, ""), (judging[0], " whose later layers are fitted too")):
                other = random_cut(classifier, multiply_adds(cut), seed, fitted)
                train_on(other)
                figures[f"accuracy above a random cut of as many multiply-adds{name}"] = left - accuracy(
                    other, *testing
                )
        found |= {f"{how}: {what}": value for what, value in figures.items()}
    return found


def exactness(classifier: Classifier, testing: Images, wanted: dict[str, list[int]]) -> Figures:
    """Return how far the logits of the cut network are from those with the same filters silenced."""
    pixels, masked, removed = testing[0][:64], copy.deepcopy(classifier), copy.deepcopy(classifier)
    gone = cut_filters(removed, wanted)
    with torch.no_grad(), ablated(masked, gone.filters):
        left, right = masked(pixels), removed(pixels)
        difference = float((left - right).abs().max())
        return {
            "largest difference of a logit, removed against silenced": difference,
            "the same as a share of the largest logit": difference / float(left.abs().max()),
        }


def without_copies(classifier: Classifier, images: tuple[Images, Images], records: HealthRecords) -> Figures:
    """Return what is lost if only duplicates are cut out and later layers are fitted."""
    judging, (pixels, labels) = images
    copies = {
        layer: [i for i, word in enumerate(record["verdicts"]) if word == "duplicate"]
        for layer, record in records.items()
    }
    found: Figures = {"duplicates": sum(map(len, copies.values()))}
    if found["duplicates"]:
        merged = copy.deepcopy(classifier)
        cut_filters(merged, copies, images=judging[0])
        with torch.no_grad():
            found["largest change of a logit without duplicates"] = float(
                (merged(pixels[:64]) - classifier(pixels[:64])).abs().max()
            )
        lost = accuracy(classifier, pixels, labels) - accuracy(merged, pixels, labels)
        found["accuracy lost without duplicates"] = lost
    return found


TARGETS: dict[str, tuple[str, float]] = {
    "the same as a share of the largest logit": ("at_most", 1e-5),
    "accuracy lost without duplicates": ("at_most", 0.003),
    "by verdict: accuracy lost after one epoch": ("at_most", 0.003),
    "by importance: accuracy lost after one epoch": ("at_most", 0.003),
    "by importance: accuracy above a random cut of as many multiply-adds": ("at_least", 0.02),
    "by verdict: speed-up of a forward pass": ("at_least", 1),
    "by importance: speed-up of a forward pass": ("at_least", 1),
}


def report_means(report: Report, name: str, networks: list[Figures]) -> None:
    """Report the means over networks with their standard errors."""
    for what in dict.fromkeys(key for each in networks for key in each):
        values = [each[what] for each in networks if what in each]
        error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
        kind, target = TARGETS.get(what, ("", 0.0))
        bound = {kind: target} if kind else {}
        report.add(f"{name}, {what} (mean of {len(values)})", statistics.mean(values), **bound, error=error, all=values)


def random_cut(classifier: Classifier, operations: int, seed: int, images: Tensor | None) -> Classifier:
    """Return a copy without random filters, the same share in every layer, with at most so many multiply-adds.

    With images, later layers are fitted.
    """
    generator = torch.Generator().manual_seed(seed)
    counts = {name: len(classifier.module_of(name).weight) for name in convolutions(classifier.layers)}
    orders = {name: torch.randperm(count, generator=generator) for name, count in counts.items()}
    for percent in range(2, 100, 2):
        other = copy.deepcopy(classifier)
        wanted = {name: order[: len(order) * percent // 100].tolist() for name, order in orders.items()}
        cut_filters(other, wanted)
        if multiply_adds(other) <= operations:
            break
    if images is not None:
        other = copy.deepcopy(classifier)
        cut_filters(other, wanted, images=images)
    return other


def on_flowers(report: Report, real: Path, quick: bool, keep: Path) -> None:
    """Prune AlexNets finetuned on flowers."""
    (images, labels), (more, their) = flowers(real, "train", 128), flowers(real, "val", 128)
    pool, found = (torch.cat([images, more]), torch.cat([labels, their])), []
    for seed in (1,) if quick else range(1, 6):
        torch.manual_seed(seed)
        classifier = alexnet(real, 102)
        data, judging, testing = partition(pool, 1020, 510, 510, seed=seed)
        fit = partial(finetune, classifier, data, epochs=3 if quick else 6, annealed=True)
        found.append(
            pruned(
                keep,
                f"AlexNet on flowers, {seed}",
                classifier,
                fit,
                partial(finetune, data=data, epochs=1, rate=0.1, annealed=True),
                (judging, testing),
                least=0.25,
                seed=seed,
            )
        )
    report_means(report, "AlexNet on flowers", found)


def on_fashion(report: Report, real: Path, quick: bool, keep: Path) -> None:
    """Prune three convolutions trained on FashionMNIST; cutting was developed on seed 1."""
    found = []
    for seed in (2,) if quick else range(2, 7):
        torch.manual_seed(seed)
        classifier = wide()
        (data,) = partition(fashion(real, train=True, count=60_000), 6_000 if quick else 20_000, seed=seed)
        fit = partial(from_scratch, classifier, data, epochs=4 if quick else 6)
        judging, testing = partition(fashion(real, train=False, count=10_000), 1000, 9000, seed=seed)
        found.append(
            pruned(
                keep,
                f"three convolutions on FashionMNIST, {seed}",
                classifier,
                fit,
                partial(one_epoch, data),
                (judging, testing),
                least=0.5,
                seed=seed,
            )
        )
    report_means(report, "FashionMNIST", found)


def one_epoch(data: Images, network: Classifier) -> None:
    """Train at a rate that falls to 0; of rates from .0005 to .05, this one lost least on seed 1."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-3)
    schedule = falling(optimizer, len(data[0]) // 64)
    train_network(network, data, optimizer, epochs=1, batch_size=64, schedule=schedule)


def pruned(
    keep: Path,
    name: str,
    classifier: Classifier,
    fit: Callable[[], None],
    train: Train,
    images: tuple[Images, Images],
    *,
    least: float,
    seed: int,
) -> Figures:
    """Train a network and return the figures of `prune`; both are kept, and taken from there if they are there."""
    file = keep / re.sub(r"\W+", "_", name)

    def trained() -> dict[str, Tensor]:
        fit()
        return classifier.state_dict()

    def measured() -> Figures:
        classifier.load_state_dict(kept(file.with_suffix(".net"), trained))
        return prune(classifier, train, images, least=least, seed=seed)

    found: Figures = kept(file.with_suffix(".pruned"), measured)
    print(name, found, flush=True)
    return found


def recycling(report: Report, real: Path, quick: bool, keep: Path) -> None:
    """Train three convolutions on FashionMNIST from scratch, with `callbacks=recycle` and without, from five seeds.

    A quarter of the first layer is dead at the start, and recycled after two epochs.
    """
    del keep
    structured, recycled, worse = 0, 0, []
    with TemporaryDirectory() as temporary:
        for seed in range(5):
            with_it, without = (
                recycling_run(Path(temporary) / f"{seed}_{len(callbacks)}", real, quick, seed, callbacks)
                for callbacks in (["default", "recycle"], ["default"])
            )
            now = {(row["layer"], row["filter"]): row for row in rows_of(with_it / "health" / "epoch_007.csv")}
            for row in rows_of(with_it / "recycled.csv"):
                if row["layer"] == "block1_conv1":
                    recycled += 1
                    structured += int(float(now[row["layer"], row["filter"]]["structured"]))
            losses = [float(rows_of(each / "metrics.csv")[-1]["val/loss"]) for each in (with_it, without)]
            worse.append(losses[0] - losses[1])
    what = "recycled filters of a first layer trained from scratch: share with structure five epochs later"
    report.add(what, structured / max(recycled, 1), at_least=0.8, filters=recycled)
    report.add("validation loss with recycling less that without, largest of five", max(worse), at_most=0, all=worse)


def recycling_run(folder: Path, real: Path, quick: bool, seed: int, callbacks: list[str]) -> Path:
    """Train into a folder, and return it."""
    words = ["data=fashion_mnist", f"data.root={real}", "data.download=false", "data.batch_size=64"]
    words += ["model=callable", "model.path=health_networks.partly_dead", "model.in_channels=1"]
    words += ["model.mean=[0.286]", "model.std=[0.353]", "head=replace"]
    words += [f"seed={seed}", f"callbacks=[{','.join(callbacks)}]"]
    words += ["visuals=health", "visuals.health.every=7", "trainer.max_epochs=8"]
    words += ["trainer.limit_train_batches=80", "trainer.limit_val_batches=32"] if quick else []
    if "recycle" in callbacks:
        words += [f"callbacks.recycle.{option}" for option in ("every_epochs=2", "until=0.25", "share=0.5")]
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(here.parent / "train.py"), *words, f"hydra.run.dir={folder}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    return folder


def rows_of(file: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file; none if there is no such file, as where nothing was recycled."""
    if not file.exists():
        return []
    with file.open() as stream:
        return list(csv.DictReader(stream))


PARTS = {"flowers": on_flowers, "fashion": on_fashion, "recycling": recycling}


def main() -> int:
    """Run the parts asked for."""
    options = arguments(
        __doc__.splitlines()[0],
        only={"default": ",".join(PARTS), "metavar": "PARTS"},
        keep={"type": Path, "metavar": "FOLDER", "help": "keep networks and figures there, and go on from them"},
    )
    report, real = Report("health_prunes"), real_data()
    if real is None:
        print("set FILTERSCOPE_REAL to a folder of real data: nothing is measured without it")
        return 0
    with TemporaryDirectory() as temporary:
        keep = (options.keep or Path(temporary)) / ("quick" if options.quick else "full")
        keep.mkdir(parents=True, exist_ok=True)
        for part in options.only.split(","):
            PARTS[part](report, real, options.quick, keep)
    return 0 if report.show(options.json) else 1


if __name__ == "__main__":
    raise SystemExit(main())
