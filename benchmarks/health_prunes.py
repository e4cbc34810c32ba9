"""Measure what is lost when filters are cut out by verdict and by importance, and what filters become if recycled.

    FILTERSCOPE_REAL=<folder> python benchmarks/health_prunes.py [--quick] [--json FILE]
        [--only flowers,fashion,recycling]

Filters are judged on one part of the images that the network was not trained on, accuracy is measured on another.
Recycling is measured in runs of `train.py` with and without it.
"""

import copy
import csv
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from health_networks import Images, alexnet, fashion, finetune, flowers, from_scratch, partition, wide
from health_networks import train as train_network
from report import Report, arguments, ratio, real_data
from torch import Tensor

from filterscope.analysis.health.causes import ablated, accuracy
from filterscope.models.classifier import Classifier
from filterscope.models.filter_removal import cut_filters, multiply_adds
from filterscope.models.layers import convolutions
from filterscope.training.prune import least_important
from filterscope.visuals.health.findings import HealthRecords, removable_filters
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
    unneeded = removable_filters(records)
    report_exactness(report, name, classifier, testing, unneeded)
    report_copies(report, name, classifier, images, records)
    uncut = copy.deepcopy(classifier)
    report.add(f"{name}: accuracy before the cut", accuracy(uncut, *testing))
    train(uncut)
    trained = accuracy(uncut, *testing)
    report.add(f"{name}: accuracy of the uncut network after one more epoch", trained)
    ways = {"by verdict": unneeded, "by importance": least_important(records, least)}
    for how, wanted in ways.items():
        cut = copy.deepcopy(classifier)
        done = cut_filters(cut, wanted, images=judging[0])
        share = sum(map(len, done.filters.values())) / sum(len(record["verdicts"]) for record in records.values())
        report.add(f"{name}, {how}: share of the filters that is cut", share)
        silent = copy.deepcopy(classifier)
        cut_filters(silent, wanted)
        report.add(f"{name}, {how}: accuracy before training, later layers not fitted", accuracy(silent, *testing))
        report.add(f"{name}, {how}: accuracy before training", accuracy(cut, *testing))
        train(cut)
        lost = trained - accuracy(cut, *testing)
        what = f"{name}, {how}: accuracy lost after one epoch, against the uncut network after that epoch"
        report.add(what, lost, at_most=0.003)
        train(silent)
        report.add(f"{what}, later layers not fitted", trained - accuracy(silent, *testing))
        operations = multiply_adds(cut) / multiply_adds(uncut)
        batch = testing[0][:64]
        with torch.no_grad():
            faster = ratio(partial(uncut.eval(), batch), partial(cut.eval(), batch), repetitions=7, processor=True)[0]
        report.add(f"{name}, {how}: share of the multiply-adds that is left", operations)
        report.add(
            f"{name}, {how}: speed-up of a forward pass", faster, at_least=1, **{"by multiply-adds": 1 / operations}
        )
    # What is compared is the last way: by importance.
    for fitted, least_worse in ((False, 0.02), (True, None)):
        worse = []
        for seed in range(seeds):
            other = random_cut(classifier, multiply_adds(cut), seed, judging[0] if fitted else None)
            train(other)
            worse.append(accuracy(cut, *testing) - accuracy(other, *testing))
        what = f"{name}, by importance: accuracy above random cuts of as many multiply-adds"
        also = " whose later layers are fitted too" if fitted else ""
        report.add(f"{what}{also}, smallest of {seeds}", min(worse), at_least=least_worse, all=worse)


def report_exactness(
    report: Report, name: str, classifier: Classifier, testing: Images, wanted: dict[str, list[int]]
) -> None:
    """Report how far the logits of the cut network are from those with the same filters silenced."""
    pixels, masked, removed = testing[0][:64], copy.deepcopy(classifier), copy.deepcopy(classifier)
    gone = cut_filters(removed, wanted)
    with torch.no_grad(), ablated(masked, gone.filters):
        difference = float((masked(pixels) - removed(pixels)).abs().max())
    report.add(f"{name}: largest difference of a logit, removed against silenced", difference, at_most=1e-5)


def report_copies(
    report: Report, name: str, classifier: Classifier, images: tuple[Images, Images], records: HealthRecords
) -> None:
    """Report what is lost if only duplicates are cut out and later layers are fitted."""
    judging, (pixels, labels) = images
    copies = {
        layer: [i for i, word in enumerate(record["verdicts"]) if word == "duplicate"]
        for layer, record in records.items()
    }
    count = sum(map(len, copies.values()))
    report.add(f"{name}: duplicates", count)
    if count:
        merged = copy.deepcopy(classifier)
        cut_filters(merged, copies, images=judging[0])
        with torch.no_grad():
            change = float((merged(pixels[:64]) - classifier(pixels[:64])).abs().max())
        lost = accuracy(classifier, pixels, labels) - accuracy(merged, pixels, labels)
        report.add(f"{name}: largest change of a logit without duplicates", change)
        report.add(f"{name}: accuracy lost without duplicates", lost, at_most=0.003)


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
    torch.manual_seed(2)  # cutting was developed on seed 1
    classifier = wide()
    (data,) = partition(fashion(real, train=True, count=60_000), 6_000 if quick else 20_000, seed=2)
    from_scratch(classifier, data, epochs=4 if quick else 6)
    judging, testing = partition(fashion(real, train=False, count=10_000), 1000, 3000, seed=2)

    def train(network: Classifier) -> None:
        optimizer = torch.optim.SGD(network.parameters(), lr=0.005, momentum=0.9, weight_decay=1e-3)
        train_network(network, data, optimizer, epochs=1, batch_size=64)

    prune(report, "FashionMNIST", classifier, train, (judging, testing), least=0.5, seeds=1 if quick else 5)


def recycling(report: Report, real: Path, quick: bool) -> None:
    """Train three convolutions on FashionMNIST from scratch, with `callbacks=recycle` and without, from five seeds.

    A quarter of the first layer is dead at the start, and recycled after two epochs.
    """
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
    options = arguments(__doc__.splitlines()[0], only={"default": ",".join(PARTS), "metavar": "PARTS"})
    report, real = Report("health_prunes"), real_data()
    if real is None:
        print("set FILTERSCOPE_REAL to a folder of real data: nothing is measured without it")
        return 0
    for part in options.only.split(","):
        PARTS[part](report, real, options.quick)
    return 0 if report.show(options.json) else 1


if __name__ == "__main__":
    raise SystemExit(main())
