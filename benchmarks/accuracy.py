"""Do the fast settings cost accuracy? And with `--table`: how accurate are the best experiments?

    FILTERSCOPE_REAL=<folder> python benchmarks/accuracy.py [--quick] [--json FILE] [--only full,frozen,cached,…]
    FILTERSCOPE_REAL=<folder> python benchmarks/accuracy.py --table [--quick] [--only flowers_alexnet_probe,…]

Real flowers, real convolutional weights, three seeds. The slow settings are float32, contiguous, JPEG files and new
random augmentations in every epoch. Both sides of a pair see the same batches. `--quick` takes 20 of the 102 classes
and fewer epochs.

The table takes hours. It keeps its runs in `outputs/accuracy`; after a kill the same command goes on where it stopped.
With `--quick`: one seed, and flowers of 20 classes.
"""

import csv
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from loops import REPOSITORY, compose, flowers, run
from report import Report, arguments, processor_time, real_data
from torchvision.datasets import Flowers102

from filterscope.cli.train import train

SLOW = ("trainer.precision=32-true", "channels_last=false")
PROBE = ("finetune=linear_probe", "finetune.lr=0.003")
SEEDS = (0, 1, 2)

# name: network, epochs, overrides of the slow side, overrides of the fast side, overrides of both
PAIRS: dict[str, tuple[str, int, Sequence[str], Sequence[str], Sequence[str]]] = {
    "full": ("alexnet", 8, SLOW, (), ("finetune=full",)),
    "frozen": ("alexnet", 10, SLOW, (), PROBE),
    "cached": ("alexnet", 10, SLOW, ("finetune.cached_augmentations=4",), PROBE),
    "one_view": ("alexnet", 10, SLOW, ("finetune.cached_augmentations=0",), PROBE),
    "decoded": ("alexnet", 10, SLOW, ("data.cache={cache}",), PROBE),
    "vgg16_frozen": ("vgg16", 4, SLOW, (), PROBE),
    "vgg16_cached": ("vgg16", 4, SLOW, ("finetune.cached_augmentations=2",), PROBE),
}

# experiment: file of its weights, lowest accuracy that it should reach after its last epoch
EXPERIMENTS: dict[str, tuple[str | None, float | None]] = {
    "flowers_alexnet_probe": ("alexnet_features.pth", 0.865),
    "flowers_alexnet_full": ("alexnet_features.pth", 0.865),
    "flowers_vgg16_probe": ("vgg16_features.pth", 0.9),
    "animals_alexnet_probe": ("alexnet_features.pth", None),
    "fashion_mnist_small_cnn": (None, None),
    "fashion_mnist_resnet18": (None, None),
}


def measure_table(report: Report, real: Path, names: Sequence[str], *, quick: bool) -> None:
    """Run each experiment with each seed, unless an earlier command has, and add its accuracy."""
    for name in names:
        weights, floor = EXPERIMENTS[name]
        last, best, test, seconds = [], [], [], 0.0
        for seed in SEEDS[:1] if quick else SEEDS:
            folder = REPOSITORY / "outputs" / "accuracy" / f"{name}{'_quick' if quick else ''}_{seed}"
            cfg = compose(
                f"experiment={name}", f"data.root={real}", f"seed={seed}", "visuals=none", "data.download=false",
                "trainer.enable_progress_bar=false", f"feature_cache={folder.parent}",
                *([] if weights is None else [f"model.weights={real / 'weights' / weights}"]),
            )  # fmt: skip
            if name.startswith("animals"):
                cfg["data"]["exclude"] = ["sheep"]  # the real data that were at hand hold one of them
            if quick and name.startswith("flowers"):
                cfg["data"]["exclude"] = list(Flowers102.classes[20:])
            if not (folder / "README.md").is_file():  # the last file of a run
                begun = (folder / "checkpoints" / "last.ckpt").is_file()
                start = processor_time()
                train(cfg | {"resume": str(folder) if begun else None}, folder)
                seconds += processor_time() - start
            with (folder / "metrics.csv").open() as file:
                rows = list(csv.DictReader(file))
            last.append(float(rows[-1]["val/acc"]))
            best.append(max(float(row["val/acc"]) for row in rows))
            test += [float(rows[-1]["test/acc"])] if rows[-1].get("test/acc") else []
        more = {"best": best, "processor_seconds": seconds} | ({"test": test} if test else {})
        floor = None if quick else floor
        report.add(f"{name}: val/acc after the last epoch", statistics.mean(last), at_least=floor, seeds=last, **more)
        report.add(f"{name}: val/acc after the best epoch", statistics.mean(best))
        if test:
            report.add(f"{name}: test/acc of the best epoch", statistics.mean(test), seeds=test)


def main() -> int:
    """Measure."""
    options = arguments(
        __doc__.splitlines()[0],
        only={"metavar": "NAMES", "help": "some pairs, or some experiments of the table"},
        table={"action": "store_true", "help": "measure the best experiments instead"},
    )
    real = real_data()
    if real is None:
        print("needs real flowers and weights: FILTERSCOPE_REAL is not set")
        return 1
    report = Report("accuracy")
    names = options.only.split(",") if options.only else list(EXPERIMENTS if options.table else PAIRS)
    if options.table:
        measure_table(report, real, names, quick=options.quick)
        return 0 if report.show(options.json) else 1
    known: dict[tuple[str, ...], float] = {}
    with tempfile.TemporaryDirectory() as place:
        root = flowers(real, Path(place) / "set", classes=20 if options.quick else 102)

        def accuracy(*overrides: str) -> float:
            if overrides not in known:
                mine = run(*overrides, validate=True)
                mine.fit()
                known[overrides] = float(mine.trainer.callback_metrics["val/acc"])
            return known[overrides]

        for name in names:
            network, epochs, slow, fast, both = PAIRS[name]
            epochs = max(2, epochs // 2) if options.quick else epochs
            shared = (
                "data=folder", f"data.root={root}", "data.test_fraction=0", "visuals=none", "head=linear",
                f"model={network}", f"model.weights={real / 'weights' / f'{network}_features.pth'}",
                f"trainer.max_epochs={epochs}", "data.batch_size=32", "data.num_workers=0", *both,
            )  # fmt: skip
            added = [each.format(cache=Path(place) / "cache") for each in fast]
            sides = [[accuracy(*shared, f"seed={seed}", *side) for seed in SEEDS] for side in (slow, added)]
            before, after = map(statistics.mean, sides)
            report.add(f"{name}: accuracy with slow settings, mean of three seeds", before, seeds=sides[0])
            report.add(f"{name}: accuracy with fast settings", after, seeds=sides[1])
            report.add(f"{name}: points lost", 100 * (before - after), at_most=1.0)
    return 0 if report.show(options.json) else 1


if __name__ == "__main__":
    raise SystemExit(main())
