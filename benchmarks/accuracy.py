"""Do the fast settings cost accuracy?

    FILTERSCOPE_REAL=<folder> python benchmarks/accuracy.py [--quick] [--json FILE] [--only full,frozen,cached,…]

Real flowers, real convolutional weights, three seeds. The slow settings are float32, contiguous, JPEG files and new
random augmentations in every epoch. Both sides of a pair see the same batches. `--quick` takes 20 of the 102 classes
and fewer epochs.
"""

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from loops import flowers, run
from report import Report, arguments, real_data

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


def main() -> int:
    """Measure."""
    options = arguments(__doc__.splitlines()[0], only={"default": ",".join(PAIRS), "metavar": "PAIRS"})
    real = real_data()
    if real is None:
        print("needs real flowers and weights: FILTERSCOPE_REAL is not set")
        return 1
    report = Report("accuracy")
    known: dict[tuple[str, ...], float] = {}
    with tempfile.TemporaryDirectory() as place:
        root = flowers(real, Path(place) / "set", classes=20 if options.quick else 102)

        def accuracy(*overrides: str) -> float:
            if overrides not in known:
                mine = run(*overrides, validate=True)
                mine.fit()
                known[overrides] = float(mine.trainer.callback_metrics["val/acc"])
            return known[overrides]

        for name in options.only.split(","):
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
