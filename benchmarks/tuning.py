"""Measure how right the tuning of filters is: planted kernels, AlexNet's first layer, descriptions by eye, speed.

`planted` and `noise` need no real data; the other parts take weights and images from FILTERSCOPE_REAL.
"""

import colorsys
import csv
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from health_networks import alexnet
from report import Report, arguments, processor_time, real_data
from scipy.cluster.vq import kmeans2
from scipy.optimize import least_squares
from torch import Tensor, nn
from torchvision.datasets import Flowers102
from torchvision.transforms.functional import center_crop, pil_to_tensor, resize

from filterscope.analysis.filters import kernels
from filterscope.analysis.selectivity import sentences
from filterscope.analysis.selectivity.measurement import LayerTuning, measure_tuning
from filterscope.analysis.selectivity.stimuli import HUES
from filterscope.models.adapter import as_classifier
from filterscope.models.classifier import Classifier

SIDE = 11
MIN_CYCLES = 0.25  # standard deviations of a fitted Gabor's window in wavelengths, below which it is a blob
ORIENTED = ("grating", "edge", "bar")
BY_EYE = Path(__file__).parent / "tuning_by_eye.csv"
Truth = dict[str, Any]


def planted(report: Report, quick: bool, real: Path | None) -> None:
    """Plant Gabors, blobs, curves and colour opponents in a first layer of AlexNet's shape, and measure them."""
    del real
    count = 60 if quick else 240
    generator = torch.Generator().manual_seed(0)
    truths, weights = [], []
    for make in (gabor, blob, curve):
        for _ in range(count):
            truth, shape = make(generator)
            hue = None if uniform(generator, 0, 1) < 0.5 else uniform(generator, 0, 360)
            colour = torch.ones(3) if hue is None else equal_luminance(hue)
            kernel = colour[:, None, None] * shape
            kernel = kernel / kernel.norm()
            weights.append(kernel + 0.05 * torch.randn(kernel.shape, generator=generator) / math.sqrt(kernel.numel()))
            truths.append(truth | {"hue": hue})
    tuning = measure_tuning(first_layer(torch.stack(weights), generator), "block1_conv1")
    kinds = [sentences.kind_of_filter(tuning, i) for i in range(len(truths))]
    for kind, right in (("gabor", ORIENTED), ("blob", ("blob", "surface")), ("curve", ("curve",))):
        mine = [i for i, truth in enumerate(truths) if truth["kind"] == kind]
        share = sum(kinds[i] in right for i in mine) / len(mine)
        wrong = sorted({kinds[i] for i in mine} - set(right))
        report.add(f"planted {kind}: kind right", share, at_least=0.98, filters=len(mine), wrong=", ".join(wrong))
    gabors = [i for i, truth in enumerate(truths) if truth["kind"] == "gabor"]
    angles = [apart(float(tuning.grating.angle[i]), truths[i]["angle"]) for i in gabors]
    sizes = [abs(float(tuning.grating.wavelength[i]) / truths[i]["wavelength"] - 1) for i in gabors]
    report.add("planted Gabors: angle within 3°", share_of(angles, 3), at_least=0.98, largest=max(angles))
    report.add("planted Gabors: wavelength within 5 %", share_of(sizes, 0.05), at_least=0.98, largest=max(sizes))
    coloured = [i for i, truth in enumerate(truths) if truth["hue"] is not None]
    grey = [i for i, truth in enumerate(truths) if truth["hue"] is None]
    hues = [hue_error(tuning, i, truths[i]["hue"]) for i in coloured]
    report.add("planted colour opponents: colour axis within 15°", share_of(hues, 15), at_least=0.98, filters=len(hues))
    report.add(
        "planted grey kernels: no colour",
        sum(not sentences.has_colour(tuning, i) for i in grey) / len(grey),
        at_least=0.98,
    )


def noise(report: Report, quick: bool, real: Path | None) -> None:
    """Measure first layers of random weights, which no stimulus explains."""
    del real
    generator = torch.Generator().manual_seed(1)
    for side in (3, 7) if quick else (3, 5, 7, 9, 11, 15, 21):
        weights = torch.randn(128, 3, side, side, generator=generator) / math.sqrt(3 * side**2)
        tuning = measure_tuning(first_layer(weights, generator), "block1_conv1")
        explained = sum(sentences.kind_of_filter(tuning, i) != "none" for i in range(128)) / 128
        report.add(f"random kernels of {side} × {side}: explained by a stimulus", explained, at_most=0.05)


def published(report: Report, quick: bool, real: Path | None) -> None:
    """Compare AlexNet's first layer with Gabor fits of its kernels, and with descriptions of 40 of them by eye."""
    del quick
    if real is None:
        print("no real data: AlexNet's first layer was not measured")
        return
    classifier, images = alexnet(real, 10), some_flowers(real)
    tuning = measure_tuning(classifier, "block1_conv1", images)
    fits = [fit_gabor(kernel) for kernel in kernels(classifier, "block1_conv1").numpy()]
    clear = [i for i, fit in enumerate(fits) if fit["explained"] >= 0.6 and fit["cycles"] >= MIN_CYCLES]
    differences = [apart(float(tuning.grating.angle[i]), fits[i]["angle"]) for i in clear]
    for i, difference in zip(clear, differences, strict=True):
        if difference > 5:
            print(
                f"  filter {i}: {tuning.grating.angle[i]:.0f}°, the Gabor fit says {fits[i]['angle']:.0f}°: {fits[i]}"
            )
    report.add(
        "AlexNet: angle within 5° of a Gabor fit that explains ≥ .6",
        share_of(differences, 5),
        at_least=0.95,
        filters=len(clear),
    )
    by_eye(report, tuning)
    explained = [sentences.kind_of_filter(tuning, i) not in ("none", "silent") for i in range(64)]
    report.add("AlexNet: explained by a stimulus", sum(explained) / 64)
    report.add("AlexNet: median fit on real images", float(tuning.real_fit.median()))


def some_flowers(real: Path, count: int = 32) -> Tensor:
    """Return real images `(count, 3, 224, 224)` in [0, 1]."""
    data = Flowers102(real, split="val")
    images = [pil_to_tensor(data[i * (len(data) // count)][0]) for i in range(count)]
    return torch.stack([center_crop(resize(image, [252, 252]), [224, 224]) for image in images]).float() / 255


def by_eye(report: Report, tuning: LayerTuning) -> None:
    """Compare the words with what a person wrote about 40 filters before the words were known."""
    with BY_EYE.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    shapes, angles, colours = [], [], []
    for row in rows:
        i = int(row["filter"])
        kind, words = sentences.kind_of_filter(tuning, i), sentences.sentence(tuning, i)
        if row["shape"] != "mixed":
            right = {"oriented": ORIENTED, "blob": ("blob", "surface", "curve"), "none": ("none",)}[row["shape"]]
            shapes.append(kind in right)
            if kind not in right:
                print(f"  filter {i}: by eye {row['remark']!r}, in words {words!r}")
        if row["angle"] and kind in ORIENTED:
            angles.append(apart(float(row["angle"]), sentences.angle_of_filter(tuning, i)))
        coloured = sentences.has_colour(tuning, i)
        if row["colour"] == "grey":
            colours.append(not coloured)
        elif row["colour"] != "weak":
            name = row["colour"].split("–")[0]
            colours.append(coloured and apart(30.0 * HUES.index(name), float(tuning.hue[i])) <= 45)
        if row["colour"] != "weak" and not colours[-1]:
            print(f"  filter {i}: colour by eye {row['colour']}, in words {words!r}")
    report.add("described by eye: kind agrees", sum(shapes) / len(shapes), at_least=0.9, filters=len(shapes))
    report.add("described by eye: angle within 15°", share_of(angles, 15), at_least=0.9, filters=len(angles))
    report.add("described by eye: colour agrees", sum(colours) / len(colours), at_least=0.9, filters=len(colours))
    grey = [int(r["filter"]) for r in rows if r["shape"] == "oriented" and r["colour"] == "grey"]
    blobs = [int(r["filter"]) for r in rows if r["shape"] == "blob" and r["colour"] != "grey"]
    points = torch.stack([tuning.real_colour_selectivity, tuning.grating.selectivity], dim=1)
    groups = kmeans2(points.numpy(), np.array([[0.0, 1.0], [1.0, 0.0]]), minit="matrix")[1]
    right = [*(groups[i] == 0 for i in grey), *(groups[i] == 1 for i in blobs)]
    report.add("two clusters of colour and orientation selectivity: grey gratings and coloured blobs apart",
               sum(right) / len(right), at_least=0.9, filters=len(right))  # fmt: skip


def fit_gabor(kernel: np.ndarray[Any, Any]) -> dict[str, float]:
    """Fit a Gabor function times a colour to a kernel `(3, h, w)` by least squares, from the peaks of its spectrum.

    Returns:
        `angle` of the lines in degrees, `wavelength`, `cycles` (standard deviation across ÷ wavelength), and the share
        `explained` of the kernel's squared weights.
    """
    _, values, patterns = np.linalg.svd(kernel.reshape(3, -1), full_matrices=False)
    side = kernel.shape[1]
    target = patterns[0] * values[0]
    at = np.arange(side) - (side - 1) / 2
    x, y = (each.ravel() for each in np.meshgrid(at, -at))

    def model(p: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        turn, wavelength, phase, x0, y0, across, along, size, base = p
        u = (y - y0) * np.cos(turn) - (x - x0) * np.sin(turn)
        v = (x - x0) * np.cos(turn) + (y - y0) * np.sin(turn)
        wave = np.cos(2 * np.pi * u / wavelength + phase)
        return np.asarray(size * np.exp(-0.5 * ((u / across) ** 2 + (v / along) ** 2)) * wave + base)

    low = [-np.inf, 2.0, -np.inf, -side / 2, -side / 2, 0.7, 0.7, -np.inf, -np.inf]
    high = [np.inf, 3.0 * side, np.inf, side / 2, side / 2, 2.0 * side, 2.0 * side, np.inf, np.inf]
    turns, wavelengths = np.arange(24) * np.pi / 24, 2.5 * 1.3 ** np.arange(9)
    u = y * np.cos(turns)[:, None] - x * np.sin(turns)[:, None]
    waves = np.exp(2j * np.pi * u[:, None] / wavelengths[:, None])
    spectrum = np.abs(waves @ target)
    best = None
    for _ in range(3):  # the three largest peaks of the spectrum, at different orientations
        i, k = np.unravel_index(spectrum.argmax(), spectrum.shape)
        phase = -np.angle(waves[i, k] @ target)
        for width in (1.5, 3.0):
            start = [turns[i], wavelengths[k], -phase, 0, 0, width, width, np.abs(target).max(), 0]
            found = least_squares(lambda p: model(p) - target, start, bounds=(low, high), max_nfev=60)
            if best is None or found.cost < best.cost:
                best = found
        spectrum[np.abs((turns - turns[i] + np.pi / 2) % np.pi - np.pi / 2) < np.pi / 6] = 0
    assert best is not None
    explained = ((target**2).sum() - 2 * best.cost) / (kernel**2).sum()
    return {
        "angle": float(np.degrees(best.x[0]) % 180),
        "wavelength": float(best.x[1]),
        "cycles": float(best.x[5] / best.x[1]),
        "explained": float(explained),
    }


def speed(report: Report, quick: bool, real: Path | None) -> None:
    """Time the tuning of AlexNet's first two layers."""
    del quick
    if real is None:
        print("no real data: the speed was not measured")
        return
    classifier, images = alexnet(real, 10), some_flowers(real)
    begun, computed = time.perf_counter(), processor_time()
    for layer in ("block1_conv1", "block2_conv1"):
        measure_tuning(classifier, layer, images)
    report.add("conv1 and conv2 of AlexNet, seconds", time.perf_counter() - begun, at_most=15)
    report.add("the same, processor seconds", processor_time() - computed)


def first_layer(weights: Tensor, generator: torch.Generator) -> Classifier:
    """Return a network whose first layer has AlexNet's stride and these kernels."""
    conv = nn.Conv2d(3, len(weights), weights.shape[-1], stride=4, padding=2)
    with torch.no_grad():
        conv.weight.copy_(weights)
        conv.bias.copy_(0.2 * torch.randn(len(weights), generator=generator))
    network = nn.Sequential(
        conv, nn.ReLU(), nn.MaxPool2d(3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(len(weights), 2)
    )
    return as_classifier(network, mean=[0.5] * 3, std=[0.25] * 3, image_size=64)


def uniform(generator: torch.Generator, low: float, high: float) -> float:
    """Return a random number."""
    return low + (high - low) * float(torch.rand((), generator=generator))


def coordinates(generator: torch.Generator, shift: float) -> tuple[Tensor, Tensor]:
    """Return coordinates of a kernel's pixels around a randomly shifted centre; y points up."""
    at = torch.arange(SIDE) - (SIDE - 1) / 2
    x, y = torch.meshgrid(at, -at, indexing="xy")
    return x - uniform(generator, -shift, shift), y - uniform(generator, -shift, shift)


def gabor(generator: torch.Generator) -> tuple[Truth, Tensor]:
    """Return a Gabor function of random orientation, wavelength, phase, width and place."""
    x, y = coordinates(generator, 1.0)
    angle, wavelength = uniform(generator, 0, 180), uniform(generator, 3, 8)
    across = wavelength * uniform(generator, 0.5, 0.8)
    turn = math.radians(angle)
    u, v = y * math.cos(turn) - x * math.sin(turn), x * math.cos(turn) + y * math.sin(turn)
    envelope = torch.exp(-0.5 * ((u / across).square() + (v / (across * uniform(generator, 1, 1.6))).square()))
    wave = torch.cos(2 * math.pi * u / wavelength + uniform(generator, 0, 2 * math.pi))
    return {"kind": "gabor", "angle": angle, "wavelength": wavelength}, wave * envelope


def blob(generator: torch.Generator) -> tuple[Truth, Tensor]:
    """Return a round spot, half of the time with a surround of the opposite sign."""
    x, y = coordinates(generator, 1.5)
    width = uniform(generator, 1.0, 2.6)
    squared = x.square() + y.square()
    spot = torch.exp(-0.5 * squared / width**2)
    surround = torch.exp(-0.5 * squared / (1.8 * width) ** 2) / 1.8**2
    sign = 1.0 if uniform(generator, 0, 1) < 0.5 else -1.0
    return {"kind": "blob"}, sign * (spot - surround * (uniform(generator, 0, 1) < 0.5))


def curve(generator: torch.Generator) -> tuple[Truth, Tensor]:
    """Return an arc of 130 to 180° on a surround of the opposite sign."""
    x, y = coordinates(generator, 0.7)
    radius, bulge = uniform(generator, 2.2, 4.2), math.radians(uniform(generator, 0, 360))
    from_centre = torch.hypot(x + 0.5 * radius * math.cos(bulge), y + 0.5 * radius * math.sin(bulge))
    turn = torch.atan2(y + 0.5 * radius * math.sin(bulge), x + 0.5 * radius * math.cos(bulge)) - bulge
    turn = torch.remainder(turn + math.pi, 2 * math.pi) - math.pi
    half = math.radians(uniform(generator, 65, 90))
    arc = torch.exp(-0.5 * ((from_centre - radius) / 0.8).square()) * torch.sigmoid((half - turn.abs()) * 8)
    return {"kind": "curve"}, arc - arc.mean()


def equal_luminance(hue: float) -> Tensor:
    """Return a hue minus grey of the same luminance (ITU-R BT.709), written here independently of the stimuli."""
    pure = torch.tensor(colorsys.hsv_to_rgb(hue / 360, 1, 1))
    return pure - float(pure @ torch.tensor([0.2126, 0.7152, 0.0722]))


def hue_error(tuning: LayerTuning, i: int, hue: float) -> float:
    """Return the difference of two colour axes in degrees, 90 for a filter that is said to have no colour."""
    return apart(float(tuning.hue[i]), hue) if sentences.has_colour(tuning, i) else 90.0


def apart(first: float, second: float) -> float:
    """Return the difference of two axes in degrees, 0 to 90."""
    return abs((first - second + 90) % 180 - 90)


def share_of(values: list[float], bound: float) -> float:
    """Return the share of values that are at most the bound."""
    return sum(value <= bound for value in values) / max(len(values), 1)


PARTS: dict[str, Callable[[Report, bool, Path | None], None]] = {
    "planted": planted,
    "noise": noise,
    "published": published,
    "speed": speed,
}


def main() -> None:
    """Run the benchmark."""
    options = arguments(__doc__, only={"choices": list(PARTS), "help": "run this part only"})
    report, real = Report(title="tuning"), real_data()
    for name, part in PARTS.items():
        if options.only in (None, name):
            part(report, options.quick, real)
    raise SystemExit(not report.show(options.json))


if __name__ == "__main__":
    main()
