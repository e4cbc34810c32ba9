"""How fast pictures are synthesized: against torch-lucent, the notebook's own loop, and the convolution peak.

FILTERSCOPE_REAL=<folder> python benchmarks/synthesis_speed.py [--quick] [--json FILE] [--only TEXT]

With `--only` those rows alone are measured that have TEXT in their name (`vgg16`, `96 px`, `peak`), and FILE keeps the
others that it had: so the whole can be run in pieces. torch-lucent comes with the extra `benchmarks`.
"""

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from report import Report, arguments, ratio, seconds, version
from synthesis_networks import channels_of, classifier, lucent, lucent_pictures, published
from torch import Tensor, nn

from filterscope.analysis.synthesis import Recipe, synthesize
from filterscope.models.classifier import Classifier
from filterscope.models.layers import find_layer
from filterscope.runtime.cores import computes_in_bf16

PIXELS = Recipe(
    objective="channel", parameterization="pixels", jitter=0, scale=0, rotate=0, leaky_slope=0, leaky_steps=0, memory=4
)
FOURIER = Recipe(objective="channel", untransformed=0, memory=4)
NOTEBOOK = Recipe(
    objective="channel", parameterization="pixels", learning_rate=0.1, anneal=0, optimizer="normalized",
    start="uniform", bounded=False, decorrelate=False, normalize=False, jitter=0, scale=0, rotate=0, leaky_slope=0,
    leaky_steps=0, memory=4,
)  # fmt: skip

# network, layer, recipe, size, pictures in a batch, times faster than lucent in fp32 and in bf16
RIVALRY = (
    ("alexnet", "block1_conv1", PIXELS, 96, 64, 86, None),
    ("alexnet", "block2_conv1", PIXELS, 96, 64, 43, 57),
    ("alexnet", "block3_conv3", FOURIER, 96, 64, 18, 26),
    ("vgg16", "block1_conv1", PIXELS, 96, 64, 153, 193),
    ("vgg16", "block3_conv1", PIXELS, 96, 16, 6.4, 11.6),
    ("vgg16", "block5_conv1", PIXELS, 96, 16, 3.5, 6.9),
    ("alexnet", "block1_conv1", PIXELS, 224, 32, 26, None),
    ("alexnet", "block2_conv1", PIXELS, 224, 32, 12, 16),
    ("alexnet", "block3_conv3", FOURIER, 224, 32, 4.9, 6.9),
    ("vgg16", "block1_conv1", PIXELS, 224, 32, 71, 92),
    ("vgg16", "block3_conv1", PIXELS, 224, 4, 3.9, 7),
    ("vgg16", "block5_conv1", PIXELS, 224, 4, 1.8, 3.9),
)  # fmt: skip


@dataclass(frozen=True)
class Wanted:
    """How much is measured: ascents of `steps`, `repetitions` of each pair, rows with `only` in their name."""

    steps: int
    repetitions: int
    only: str = ""

    def __call__(self, what: str) -> bool:
        """Return whether a row is wanted."""
        return self.only in what


def against_lucent(report: Report, wanted: Wanted, sizes: tuple[int, ...]) -> None:
    """Report how many times more pictures a second come than from torch-lucent: same steps, size and image."""
    modules = {name: (classifier(name), published(name)) for name in ("alexnet", "vgg16")}
    precisions = ("fp32", "bf16") if computes_in_bf16() or torch.cuda.is_available() else ("fp32",)
    for name, layer, recipe, size, count, *targets in (row for row in RIVALRY if row[3] in sizes):
        network, other = modules[name]
        path = find_layer(network.layers, layer).path.removeprefix("backbone.network.")
        for precision, target in zip(precisions, targets, strict=False):
            own = replace(recipe, size=size, steps=wanted.steps, precision=precision)
            what = f"× lucent: {name} {layer} {size} px {own.parameterization} {precision}"
            if not wanted(what):
                continue
            fourier = own.parameterization == "fourier"
            rival = partial(
                lucent_pictures, lucent(), other, path, 0,
                steps=(wanted.steps,), size=size, fourier=fourier, transforms=fourier, upsample=False,
            )  # fmt: skip
            ours = partial(synthesize, network, layer, channels_of(network, layer, count), recipe=own)
            rival(), ours()
            found = ratio(rival, ours, repetitions=wanted.repetitions).scaled(count)
            report.compare(what, found, rival=version("torch-lucent"), at_least=target, steps=wanted.steps)


def against_the_notebook(report: Report, wanted: Wanted) -> None:
    """Report how many times more pictures a second come than from the notebook's loop, the same arithmetic in fp32."""
    for name, layer, count, target in (
        ("alexnet", "block2_conv1", 32, 5), ("vgg16", "block1_conv1", 32, 5),
        ("vgg16", "block3_conv1", 16, 2), ("vgg16", "block5_conv1", 16, 2),
    ):  # fmt: skip
        what = f"× the notebook's loop: {name} {layer} 96 px fp32"
        if not wanted(what):
            continue
        network = classifier(name)
        submodel = published(name).features[: _position(network, layer) + 1]
        chosen = channels_of(network, layer, count)
        recipe = replace(NOTEBOOK, size=96, steps=wanted.steps, precision="fp32")
        found = ratio(
            partial(notebook_loop, submodel, 0, wanted.steps),
            partial(synthesize, network, layer, chosen, recipe=recipe),
            repetitions=wanted.repetitions,
        )
        rival = "the notebook's loop"
        report.compare(what, found.scaled(count), rival=rival, at_least=target, steps=wanted.steps)


def notebook_loop(submodel: nn.Module, channel: int, steps: int) -> Tensor:
    """Return the image after the notebook's ascent, one picture at a time, as it is usually carried over to torch."""
    image = torch.rand(1, 3, 96, 96)
    for _ in range(steps):
        image.requires_grad_()
        F.relu(submodel(image))[:, channel].mean().backward()
        gradient = image.grad
        image = (image + 0.1 * gradient * gradient.square().sum().clamp_min(1e-12).rsqrt()).detach()
    return image


def against_the_peak(report: Report, wanted: Wanted) -> None:
    """Report which share of the machine's convolution peak deep layers reach, forward and data gradient together."""
    network = classifier("vgg16")
    for layer in ("block3_conv1", "block5_conv1"):
        chosen = channels_of(network, layer, 16)
        for precision in ("fp32", "bf16"):
            what = f"share of the convolution peak: vgg16 {layer} 96 px {precision}"
            if not wanted(what):
                continue
            recipe = replace(PIXELS, size=96, steps=wanted.steps, precision=precision)
            work = partial(synthesize, network, layer, chosen, recipe=recipe)
            floors = (2 * plain_convolutions(network, layer, 96, precision) for _ in range(wanted.repetitions))
            shares = [floor * wanted.steps * len(chosen) / seconds(work) for floor in floors]
            report.add(what, statistics.median(shares), at_least=0.85)


def plain_convolutions(network: Classifier, layer: str, size: int, precision: str, batch: int = 16) -> float:
    """Return the seconds a picture takes in the best plain `F.conv2d` of each convolution before a layer, forward."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    total = 0.0
    side = size
    for module in network.backbone.network.features[: _position(network, layer)]:
        if isinstance(module, nn.MaxPool2d):
            side //= 2
        if isinstance(module, nn.Conv2d):
            images = torch.randn(batch, module.in_channels, side, side).to(dtype)
            images = images.contiguous(memory_format=torch.channels_last)
            weight = module.weight.detach().to(dtype).contiguous(memory_format=torch.channels_last)
            work: Callable[[], Tensor] = partial(F.conv2d, images, weight, padding=1)
            work()
            total += min(seconds(work) for _ in range(4)) / batch
    return total


def _position(network: Classifier, layer: str) -> int:
    return int(find_layer(network.layers, layer).path.rpartition(".")[2])


def earlier(file: Path | None) -> list[dict[str, Any]]:
    """Return the rows that an earlier piece left in the file."""
    if file is None or not file.exists():
        return []
    rows: list[dict[str, Any]] = json.loads(file.read_text())["rows"]
    return rows


def main() -> None:
    options = arguments(__doc__ or "", only={"metavar": "TEXT", "default": "", "help": "rows with TEXT in their name"})
    report = Report("synthesis: speed")
    before = earlier(options.json) if options.only else []
    wanted = Wanted(8, 3, options.only) if options.quick else Wanted(32, 5, options.only)
    against_lucent(report, wanted, (96,) if options.quick and not options.only else (96, 224))
    against_the_notebook(report, wanted)
    against_the_peak(report, wanted)
    if not report.rows:
        raise SystemExit(f"--only {options.only}: no row has that in its name")
    new = {row["what"] for row in report.rows}
    report.rows[:0] = [row for row in before if row["what"] not in new]
    raise SystemExit(0 if report.show(options.json) else 1)


if __name__ == "__main__":
    main()
