"""How true synthesized pictures are, against torch-lucent at equal steps: own channel first, and how strongly.

Own-channel retrieval: the share of pictures that excite their own channel more than any other of the layer, each
channel in units of its spread on real images. Activation: the rectified mean over the largest one that a real image
causes, without transforms, at the size at which the picture was made. Beside them what keeps noise from winning: the
slope of the spectrum and the total variation, of the pictures and of the real images.

python benchmarks/synthesis_truth.py [--quick] [--json FILE] [--pictures FOLDER]
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from report import Report, arguments, real_data
from synthesis_networks import CONVOLUTIONS, channels_of, classifier, lucent, lucent_picture, published
from torch import Tensor
from torchvision.datasets import Flowers102
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor, resize, to_dtype
from torchvision.utils import save_image

from filterscope.models.classifier import Classifier
from filterscope.models.layers import find_layer
from filterscope.probes.activations import activations
from filterscope.probes.synthesis import (
    ActivationStatistics,
    LayerStatistics,
    Recipe,
    measure_statistics,
    ranks,
    synthesize,
)
from filterscope.probes.synthesis.objectives import mean_response

PLAIN = Recipe(objective="channel", learning_rate=0.1)
SPECIFIC = Recipe(objective="specific")


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a layer's pictures come to."""

    retrieval: float
    activation: float
    slope: float
    variation: float


def flowers(count: int, size: int = 224) -> Tensor:
    """Return real flower images `(count, 3, size, size)`, evenly spaced over the validation set."""
    pictures = Flowers102(root=str(real_data()), split="val", download=False)
    chosen = (pictures[i * len(pictures) // count][0] for i in range(count))
    return torch.stack(
        [to_dtype(center_crop(resize(pil_to_tensor(p), size), size), torch.float32, scale=True) for p in chosen]
    )


def score(network: Classifier, layer: str, channels: Sequence[int], images: Tensor, known: LayerStatistics) -> Score:
    """Score pictures, one for each channel."""
    responses = mean_response(activations(network, images, [layer])[layer])
    own = responses[torch.arange(len(channels)), torch.tensor(channels)]
    return Score(
        retrieval=float((ranks(responses, channels, known) == 0).float().mean()),
        activation=float(known.multiple(own, channels).median()),
        slope=spectrum_slope(images),
        variation=total_variation(images),
    )


def spectrum_slope(images: Tensor) -> float:
    """Return the median slope of log amplitude over log frequency; natural images have about -1."""
    size = images.shape[-1]
    amplitude = torch.fft.fft2(images.mean(dim=1) - images.mean(dim=(1, 2, 3))[:, None, None]).abs()
    frequency = torch.fft.fftfreq(size)
    radius = (frequency[:, None].square() + frequency[None, :].square()).sqrt()
    inside = (radius > 2 / size) & (radius < 0.5)
    x = radius[inside].log()
    y = amplitude[:, inside].clamp_min(1e-9).log()
    slopes = ((x - x.mean()) * (y - y.mean(dim=1, keepdim=True))).sum(dim=1) / (x - x.mean()).square().sum()
    return float(slopes.median())


def total_variation(images: Tensor) -> float:
    """Return the median over images of the mean absolute difference of neighbouring pixels."""
    down, right = images.diff(dim=2).abs().mean(dim=(1, 2, 3)), images.diff(dim=3).abs().mean(dim=(1, 2, 3))
    return float(((down + right) / 2).median())


def compare(report: Report, name: str, *, count: int, steps: int, more: int, size: int, folder: Path | None) -> None:
    """Report every layer of a network, then all layers together.

    Args:
        report: gets the rows.
        name: of the network.
        count: channels a layer, evenly spaced.
        steps: for lucent and for both recipes.
        more: steps at which the specific recipe is scored again.
        size: of the pictures, pixels.
        folder: for the sheets.
    """
    tool, network, other = lucent(), classifier(name), published(name)
    layers = CONVOLUTIONS[name]
    real = flowers(400 if name == "alexnet" else 200)
    known = measure_statistics(network, real, layers)
    report.add(f"{name}: real images, spectrum slope", spectrum_slope(real), variation=total_variation(real))
    ours = {
        f"plain, {steps} steps": PLAIN, f"specific, {steps} steps": SPECIFIC, f"specific, {more} steps": SPECIFIC,
    }  # fmt: skip
    scores: dict[str, list[Score]] = {way: [] for way in ("lucent", *ours)}
    sheets: dict[str, list[Tensor]] = {way: [] for way in scores}
    for layer in layers:
        channels = channels_of(network, layer, count)
        path = find_layer(network.layers, layer).path.removeprefix("backbone.network.")
        pictures = [lucent_picture(tool, other, path, channel, steps=steps, size=size) for channel in channels]
        sheets["lucent"].append(torch.cat(pictures))
        for way, recipe in ours.items():
            own = replace(recipe, size=size, steps=more if str(more) in way else steps)
            sheets[way].append(_made(network, layer, channels, own, known))
        for way, sheet in sheets.items():
            scores[way].append(score(network, layer, channels, sheet[-1], known.of(layer)))
        _rows(report, name, layer, {way: made[-1] for way, made in scores.items()}, steps)
    for way, made in scores.items():
        target = 0.95 if way == f"specific, {more} steps" else None
        report.add(
            f"{name} all layers, {way}: own channel first", statistics.mean(s.retrieval for s in made), at_least=target
        )
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            save_image(
                torch.cat(sheets[way]), folder / f"{name}_{way.replace(', ', '_').replace(' ', '_')}.png", nrow=count
            )


def _made(network: Classifier, layer: str, channels: list[int], recipe: Recipe, known: ActivationStatistics) -> Tensor:
    return synthesize(network, layer, channels, recipe=recipe, statistics=known).images


def _rows(report: Report, name: str, layer: str, made: dict[str, Score], steps: int) -> None:
    rival = made["lucent"]
    for way, own in made.items():
        plain, specific = way.startswith("plain"), way.startswith("specific") and f" {steps} " not in way
        report.add(
            f"{name} {layer}, {way}: own channel first",
            own.retrieval,
            at_least=rival.retrieval if plain else 0.85 if specific else None,
            slope=own.slope,
            variation=own.variation,
        )
        report.add(
            f"{name} {layer}, {way}: times the largest real activation",
            own.activation,
            at_least=1.5 * rival.activation if plain else rival.activation if specific else None,
        )


def main() -> None:
    options = arguments(__doc__ or "", pictures={"type": Path, "metavar": "FOLDER", "help": "save sheets of them here"})
    report = Report("synthesis: truth")
    runs = (("alexnet", 4, 128, 256),) if options.quick else (
        ("alexnet", 16, 128, 256), ("alexnet", 16, 512, 768), ("vgg16", 8, 128, 256),
    )  # fmt: skip
    for name, count, steps, more in runs:
        compare(report, name, count=count, steps=steps, more=more, size=128, folder=options.pictures)
    raise SystemExit(0 if report.show(options.json) else 1)


if __name__ == "__main__":
    main()
