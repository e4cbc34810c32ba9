"""What does a GPU reach: images a second, share of its peak, time spent waiting for data, and synthesized pictures?

    FILTERSCOPE_REAL=<folder> python benchmarks/gpu.py [--quick] [--json FILE]

AlexNet and VGG16 with random weights and a new Linear, fully trained and frozen, in float32 (with TF32) and bfloat16,
on real flowers from a decode cache; without FILTERSCOPE_REAL on drawn ones. The peak is that of matrix products of 8192
rows and columns, measured in the same run, and the operations of a step are counted by torch. The share of time that
waits for data is that which the loop spends between asking for a batch and getting it.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from loops import Run, flowers, run
from report import Report, arguments, real_data, seconds, synchronize
from torch.utils.flop_counter import FlopCounterMode

from filterscope.analysis.synthesis import Recipe, synthesize
from filterscope.models.layers import convolutions

PRECISIONS = {"bf16-mixed": torch.bfloat16, "32-true": torch.float32}
BATCH = {"alexnet": 256, "vgg16": 64}
SIDE = 8192


class Clock(pl.Callback):
    """Measures steps and the time between them, after some steps of warm-up."""

    def __init__(self, warm_up: int) -> None:
        self.warm_up = warm_up
        self.begun = self.ended = self.waited = self.since = 0.0
        self.images = 0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, index: int) -> None:
        """Count the time since the last step's end as waiting."""
        if index == self.warm_up:
            synchronize()
            self.begun = time.perf_counter()
        elif index > self.warm_up:
            self.waited += time.perf_counter() - self.since
        if index >= self.warm_up:
            self.images += len(batch[1])

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        """Note when a step was handed to the GPU."""
        self.since = time.perf_counter()

    def on_train_epoch_end(self, *_: Any, **__: Any) -> None:
        """Wait for the GPU."""
        synchronize()
        self.ended = time.perf_counter()


@contextmanager
def images(quick: bool) -> Iterator[tuple[str, ...]]:
    """Yield the options of the data set."""
    real = real_data()
    if real is None:
        yield ("data=synthetic_flowers", "data.image_size=224", f"data.num_train={1000 if quick else 5000}")
        return
    with tempfile.TemporaryDirectory() as place:
        root = flowers(real, Path(place) / "set")
        yield "data=folder", f"data.root={root}", "data.test_fraction=0", f"data.cache={Path(place) / 'cache'}"


def peak(dtype: torch.dtype) -> float:
    """Return the operations a second of large matrix products."""
    matrix = torch.rand(SIDE, SIDE, device="cuda", dtype=dtype)
    matrix @ matrix
    took = min(seconds(lambda: [matrix @ matrix for _ in range(10)]) for _ in range(3))
    return 10 * 2 * SIDE**3 / took


def operations(mine: Run, size: int, *, trained: bool) -> float:
    """Return the operations of an image in a step."""
    network = mine.module.classifier.to("cuda")
    with FlopCounterMode(display=False) as counted:
        logits = network(torch.rand(2, 3, size, size, device="cuda"))
        if trained:
            logits.sum().backward()
    network.zero_grad(set_to_none=True)
    return counted.get_total_flops() / 2


def training(report: Report, name: str, data: tuple[str, ...], *, quick: bool) -> None:
    """Report images a second, share of the peak and share of waiting for each policy and precision."""
    for finetune in ("full", "linear_probe"):
        for precision, dtype in PRECISIONS.items():
            mine = run(
                *data, f"model={name}", "model.weights=null", "model.allow_random=true", "head=linear",
                f"finetune={finetune}", f"data.batch_size={BATCH[name]}", f"trainer.precision={precision}",
                "trainer.accelerator=gpu", f"trainer.max_epochs={2 if quick else 5}", "visuals=none",
                "callbacks.checkpoint.monitor=train/acc", validate=False,
            )  # fmt: skip
            clock = Clock(warm_up=1)
            mine.trainer.callbacks.append(clock)  # type: ignore[attr-defined]
            each = operations(mine, 224, trained=finetune == "full")
            mine.fit()
            took = clock.ended - clock.begun
            what = f"{name}, {finetune}, {precision}"
            report.add(f"{what}: images a second", clock.images / took)
            report.add(f"{what}: share of the peak", clock.images / took * each / peak(dtype))
            report.add(f"{what}: share of time that waits for data", clock.waited / took, at_most=0.05)


def synthesis(report: Report, name: str, *, quick: bool) -> None:
    """Report pictures a second of the first, a middle and the last convolution, with the plain recipe at 128 steps."""
    random = ("model.weights=null", "model.allow_random=true")
    mine = run(f"model={name}", *random, "trainer.accelerator=gpu", validate=False)
    network = mine.module.classifier.to("cuda")
    layers = convolutions(network.layers)
    for layer in (layers[0], layers[len(layers) // 2], layers[-1]):
        for precision in ("bf16", "fp32"):
            recipe = Recipe(objective="channel", precision=precision, steps=32 if quick else 128)
            chosen = range(16 if quick else 64)
            synthesize(network, layer, chosen[:2], recipe=recipe)
            took = seconds(partial(synthesize, network, layer, chosen, recipe=recipe))
            report.add(f"{name} {layer}, {precision}: pictures a second", len(chosen) / took)


def main() -> int:
    """Measure."""
    options = arguments((__doc__ or "").splitlines()[0])
    if not torch.cuda.is_available():
        print("this benchmark needs a GPU that torch can use")
        return 1
    report = Report("gpu")
    with images(options.quick) as data:
        for name in BATCH:
            training(report, name, data, quick=options.quick)
            synthesis(report, name, quick=options.quick)
    return 0 if report.show(options.json) else 1


if __name__ == "__main__":
    sys.exit(main())
