"""How fast is finetuning, compared to a training loop written by hand and to timm's?

    FILTERSCOPE_REAL=<folder> python benchmarks/training.py [--quick] [--json FILE] [--only full,frozen,cached,…]

Real flowers, real convolutional weights of AlexNet and VGG16 with a new Linear on their pooled output. The loop by hand
uses PIL, torchvision's transforms, DataLoader, float32, contiguous tensors and Adam. timm's loop consists of the parts
that its `train.py` uses, with its fastest flags (`loops.WithTimm`). Networks, images and crops are the same.
`--quick` uses fewer images, steps and repetitions. `--processor` counts processor time on one core, without loader
processes, for machines that are busy with other work.
"""

import itertools
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from loops import MEAN, STD, ByHand, Run, WithTimm, bare, flowers, network, run
from report import Report, arguments, processor_time, ratio, ratio_of, real_data, seconds, version
from torch import nn
from torchvision.transforms.v2 import Normalize

BY_HAND = "a loop written by hand"
BATCH = {"alexnet": 64, "vgg16": 16}
TARGETS = {
    ("full", "alexnet"): 1.5,
    ("full", "vgg16"): 2.4,
    ("frozen", "alexnet"): 2.7,
    ("frozen", "vgg16"): 6.0,
    ("cached", "alexnet"): 25.0,
    ("cached", "vgg16"): 35.0,
}
TARGETS_TIMM = {"full": 1.2, "frozen": 1.2, "cached": 12.0}


class Bench:
    """Images, weights and amount of work of all parts."""

    def __init__(self, report: Report, real: Path, place: Path, *, quick: bool, processor: bool = False) -> None:
        self.report, self.real, self.quick, self.processor = report, real, quick, processor
        self.whole = flowers(real, place / "whole")
        self.few = flowers(real, place / "few", classes=8 if quick else 16, per_class=8)
        self.repetitions = 1 if quick else 3

    def weights(self, name: str) -> Path:
        """Return the file of a network's weights."""
        return self.real / "weights" / f"{name}_features.pth"

    def run(self, name: str, root: Path, *overrides: str, validate: bool = False) -> Run:
        """Build a run of filterscope on these images."""
        return run(
            "data=folder",
            f"data.root={root}",
            "data.test_fraction=0",
            f"data.batch_size={BATCH[name]}",
            f"model={name}",
            f"model.weights={self.weights(name)}",
            "head=linear",
            "optimizer=adam",
            "schedule=constant",
            f"data.num_workers={self.num_workers}",
            *overrides,
            validate=validate,
        )

    def by_hand(self, name: str, root: Path, **options: Any) -> ByHand:
        """Build the plain loop on these images."""
        return ByHand(**self._parts(name, root), **options)

    def with_timm(self, name: str, root: Path, **options: Any) -> WithTimm:
        """Build timm's loop on these images."""
        return WithTimm(**self._parts(name, root), compiled=not self.quick, **options)

    def _parts(self, name: str, root: Path) -> dict[str, Any]:
        trunk, head = network(name, self.weights(name), len(list((root / "train").iterdir())))
        loader = {"batch_size": BATCH[name], "num_workers": self.num_workers}
        return {"trunk": trunk, "head": head, "root": root, **loader}

    def compare(
        self, what: str, pairs: dict[str, list[tuple[float, float]]], part: str, name: str, timm: WithTimm
    ) -> None:
        """Report how many times as fast filterscope is as both loops."""
        for rival, found in ((BY_HAND, pairs[BY_HAND]), ("timm", pairs["timm"])):
            least = TARGETS[part, name] if rival == BY_HAND else TARGETS_TIMM[part]
            named = BY_HAND if rival == BY_HAND else " ".join([version("timm"), *timm.flags])
            self.report.compare(f"{what}, times as fast as {rival}", ratio_of(found), rival=named, at_least=least)

    @property
    def num_workers(self) -> int:
        """Return how many loader processes there are."""
        return 0 if self.processor else torch.get_num_threads()

    def seconds(self, work: Any) -> float:
        """Return how long a piece of work takes."""
        return seconds(work, processor=self.processor)


ALONE = ("visuals=none", "callbacks.checkpoint.monitor=train/acc")


def steps_of(bench: Bench, part: str, *, finetune: str, trained: str) -> None:
    """Measure an epoch of AlexNet and a few steps of VGG16, with random crops."""
    for name, steps in (("alexnet", 5), ("vgg16", 2)) if bench.quick else (("alexnet", None), ("vgg16", 20)):
        limit = () if steps is None else (f"trainer.limit_train_batches={steps}",)
        loops = {
            BY_HAND: bench.by_hand(name, bench.whole, trained=trained, steps=steps),
            "timm": (timm := bench.with_timm(name, bench.whole, trained=trained, steps=steps)),
        }
        pairs: dict[str, list[tuple[float, float]]] = {rival: [] for rival in loops}
        for _ in range(bench.repetitions):
            mine = bench.run(name, bench.whole, f"finetune={finetune}", "trainer.max_epochs=1", *ALONE, *limit)
            taken = {rival: bench.seconds(slow) for rival, slow in loops.items()}
            own = bench.seconds(mine.fit)
            for rival, found in pairs.items():
                found.append((taken[rival], own))
        what = f"{part}: {name}, {'an epoch' if steps is None else f'{steps} steps'}"
        bench.compare(what, pairs, part, name, timm)


def full(bench: Bench) -> None:
    """Train everything."""
    steps_of(bench, "full", finetune="full", trained="all")


def frozen(bench: Bench) -> None:
    """Train the head alone, with new random augmentations in every epoch."""
    steps_of(bench, "frozen", finetune="linear_probe", trained="head")


def cached(bench: Bench) -> None:
    """Train the last layer for ten epochs without augmentation, compared to `requires_grad=False`.

    With `--quick` an epoch of the rivals is timed and counts ten times; otherwise timm's ten epochs run, and the shares
    of validation images that both networks recognize are reported.
    """
    for name, root in (("alexnet", bench.whole), ("vgg16", bench.few)):
        whole = name == "alexnet" and not bench.quick
        slow = bench.by_hand(name, root, random=False, trained="head", frozen=10**6)
        timm = bench.with_timm(name, root, random=False, trained="head", epochs=10 if whole else 1)
        mine = bench.run(
            name, root, "finetune=linear_probe", "finetune.cached_augmentations=0", "trainer.max_epochs=10", *ALONE
        )
        taken = {BY_HAND: 10 * bench.seconds(slow), "timm": (1 if whole else 10) * bench.seconds(timm)}
        own = bench.seconds(mine.fit)
        pairs = {rival: [(each, own)] for rival, each in taken.items()}
        bench.compare(f"cached: {name}, ten epochs of the last layer", pairs, "cached", name, timm)
        if whole:
            own = accuracy(mine, mine.module.classifier)
            theirs = accuracy(mine, nn.Sequential(Normalize(MEAN, STD), timm.network))
            bench.report.add("cached: alexnet, share of validation images recognized, timm", theirs)
            what = "cached: alexnet, share of validation images recognized, less timm's"
            bench.report.add(what, own - theirs, at_least=-0.02)


@torch.no_grad()
def accuracy(mine: Run, network: nn.Module) -> float:
    """Return the share of a run's validation images that a network of images in [0, 1] recognizes."""
    network.eval()
    right = [(network(images).argmax(1) == labels).float() for images, labels in mine.data.val_dataloader()]
    return float(torch.cat(right).mean())


def block(bench: Bench) -> None:
    """Train VGG16's last block and the head for ten epochs without augmentation."""
    slow = bench.by_hand("vgg16", bench.few, random=False, frozen=24)
    mine = bench.run(
        "vgg16", bench.few, "finetune=last_blocks", "finetune.cached_augmentations=0", "trainer.max_epochs=10", *ALONE
    )
    found = ratio_of([(10 * bench.seconds(slow), bench.seconds(mine.fit))])
    what = "cached: vgg16, ten epochs of block5 and the head, times as fast"
    bench.report.compare(what, found, rival=f"{BY_HAND}, requires_grad=False", at_least=2.5)


def layout(bench: Bench) -> None:
    """Compare the contiguous memory layout to channels-last: gradients of a convolution's weights, and steps of VGG16.

    For a processor with AVX2 only, on one with more: `ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2`.
    """
    work = {}
    for kind in (torch.channels_last, torch.contiguous_format):
        images = torch.rand(2, 64, 224, 224).to(memory_format=kind)
        convolution = torch.nn.Conv2d(64, 64, 3, padding=1).to(memory_format=kind)  # type: ignore[call-overload]
        output = convolution(images)
        work[kind] = partial(torch.autograd.grad, output, convolution.weight, output.detach(), retain_graph=True)
        work[kind]()  # warm-up
    found = ratio(*work.values(), repetitions=7, processor=bench.processor)
    bench.report.compare("layout: gradients of weights, contiguous, times as fast", found, rival="channels-last")
    options = ("finetune=full", "trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.precision=32-true")
    pairs = []
    for _ in range(bench.repetitions):
        sides = (bench.run("vgg16", bench.few, *options, *ALONE, f"channels_last={kind}") for kind in ("true", "false"))
        slow, fast = (bench.seconds(side.fit) for side in sides)
        pairs.append((slow, fast))
    bench.report.compare("layout: vgg16, 2 steps, contiguous, times as fast", ratio_of(pairs), rival="channels-last")


class Clock(pl.Callback):
    """Measures the time of the training part of epochs."""

    def __init__(self, *, processor: bool) -> None:
        self.now = processor_time if processor else time.perf_counter
        self.start = 0.0
        self.times: list[float] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start."""
        self.start = self.now()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop behind the last step."""
        if batch_idx + 1 == trainer.num_training_batches:
            self.times.append(self.now() - self.start)


def lightning(bench: Bench) -> None:
    """Compare Lightning and the metrics to a bare loop with the same settings."""
    knobs = ("finetune=full", "trainer.max_epochs=1", *ALONE, "data.num_workers=0", "data.augment=null")
    knobs = (*knobs, "trainer.limit_train_batches=20")
    mine, clock = bench.run("alexnet", bench.whole, *knobs), Clock(processor=bench.processor)
    mine.trainer.callbacks.append(clock)  # type: ignore[attr-defined]
    loop = bare(bench.run("alexnet", bench.whole, *knobs))
    seconds(loop)
    mine.trainer.fit(mine.module, mine.data)
    pairs = []
    for _ in range(2 if bench.quick else 5):
        alone = bench.seconds(loop)
        mine.trainer.fit_loop.max_epochs = (mine.trainer.fit_loop.max_epochs or 0) + 1
        mine.trainer.fit(mine.module, mine.data)
        pairs.append(clock.times[-1] / alone)
    pairs.sort()
    bench.report.add("through Lightning: real steps, share of a bare loop's time", pairs[len(pairs) // 2], at_most=1.01)


def visuals(bench: Bench) -> None:
    """Measure an epoch of AlexNet, fully finetuned, with its validation and every visual at its default.

    The median of the middle four of six epochs counts: epoch 0 and the last epoch synthesize pictures from noise, which
    takes longer.
    """
    knobs = ("finetune=full", "trainer.max_epochs=6", "data.cache=null")
    times: dict[str, list[float]] = {"none": [], "default": []}
    for _ in range(1 if bench.quick else 3):
        for chosen, kept in times.items():
            clock = _Epochs(processor=bench.processor)
            mine = bench.run("alexnet", bench.whole, *knobs, f"visuals={chosen}", validate=True)
            mine.trainer.callbacks.append(clock)  # type: ignore[attr-defined]
            mine.fit()
            kept.append(statistics.median(after - before for before, after in itertools.pairwise(clock.ends[1:6])))
    pairs = sorted(zip(times["default"], times["none"], strict=True), key=lambda pair: pair[0] / pair[1])
    looking, blind = pairs[len(pairs) // 2]
    bench.report.add(
        "visuals: an epoch with all of them, share of one with none",
        looking / blind,
        at_most=1.10,
        seconds=looking,
        seconds_with_none=blind,
    )


class _Epochs(pl.Callback):
    def __init__(self, *, processor: bool) -> None:
        self.now = processor_time if processor else time.perf_counter
        self.ends: list[float] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.ends.append(self.now())

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.ends.append(self.now())


PARTS = {each.__name__: each for each in (full, frozen, cached, block, layout, lightning, visuals)}


def main() -> int:
    """Run the parts asked for."""
    options = arguments(
        __doc__.splitlines()[0],
        only={"default": ",".join(PARTS), "metavar": "PARTS"},
        processor={"action": "store_true"},
    )
    real = real_data()
    if real is None:
        print("needs real flowers and weights: FILTERSCOPE_REAL is not set")
        return 1
    if options.processor:
        torch.set_num_threads(1)
    report = Report("training")
    with tempfile.TemporaryDirectory() as place:
        bench = Bench(report, real, Path(place), quick=options.quick, processor=options.processor)
        for part in options.only.split(","):
            PARTS[part](bench)
    return 0 if report.show(options.json) else 1


if __name__ == "__main__":
    raise SystemExit(main())
