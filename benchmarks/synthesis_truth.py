"""How true synthesized pictures are, against torch-lucent at equal steps: own channel first, and how strongly.

Own-channel retrieval: the share of pictures that excite their own channel more than any other of the layer, each
channel in units of its spread on real images. Activation: the rectified mean over the largest one that a real image
causes, without transforms, at the size at which the picture was made. Beside them what keeps noise from winning: the
slope of the spectrum and the total variation, of the pictures and of the real images.

Small networks: the share of filters that are not dead whose picture by the default recipe activates them more than the
best real image; FashionMNIST's published network, and with `--run` one that `python train.py` made.

FILTERSCOPE_REAL=<folder> python benchmarks/synthesis_truth.py [--quick] [--json FILE] [--only TEXT]
    [--layers NAME …] [--seed N] [--pictures FOLDER] [--rivals FOLDER] [--run FOLDER]

torch-lucent comes with the extra `benchmarks`.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import torch
from report import Report, arguments, real_data
from synthesis_networks import (
    CONVOLUTIONS,
    NATURAL,
    PLAIN,
    SPECIFIC,
    channels_of,
    classifier,
    flowers,
    kept_picture,
    lucent,
    published,
)
from torch import Tensor, nn
from torchvision.datasets import FashionMNIST
from torchvision.utils import save_image

from filterscope.analysis.activations import activations
from filterscope.analysis.synthesis import (
    ActivationStatistics,
    LayerStatistics,
    measure_statistics,
    ranks,
    synthesize,
)
from filterscope.analysis.synthesis.trust import mean_response
from filterscope.config.from_checkpoint import open_run
from filterscope.models import heads
from filterscope.models.backbone import small_cnn_backbone
from filterscope.models.classifier import Classifier
from filterscope.models.layers import convolutions, find_layer


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a layer's pictures come to."""

    retrieval: float
    activation: float
    slope: float
    variation: float


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


@dataclass(frozen=True, kw_only=True)
class Run:
    """A network and how long pictures of it ascend: lucent's and the plain recipe's `steps`, `specific` the other's.

    `count` channels a layer, evenly spaced, are held against so many real `images`; `seed` decides all noise.
    """

    name: str
    count: int
    steps: int
    specific: tuple[int, ...]
    images: int
    seed: int = 0


RUNS = (
    Run(name="alexnet", count=16, steps=128, specific=(128, 256), images=400),
    Run(name="alexnet", count=16, steps=512, specific=(512,), images=400),
    Run(name="vgg16", count=8, steps=128, specific=(128, 256), images=200),
)
QUICK = (Run(name="alexnet", count=4, steps=128, specific=(128, 256), images=200),)


def compare(report: Report, run: Run, layers: Sequence[str], *, size: int, rivals: Path, folder: Path | None) -> None:
    """Report every layer of a network, then all layers together.

    Args:
        report: gets the rows.
        run: what to compare.
        layers: of which layers.
        size: of the pictures, pixels.
        rivals: folder of lucent's pictures that earlier runs made.
        folder: for the sheets.
    """
    tool, network, other = lucent(), classifier(run.name), published(run.name)
    real = flowers("val", run.images) / 255
    known = measure_statistics(network, real, layers)
    report.add(f"{run.name}: real images, spectrum slope", spectrum_slope(real), variation=total_variation(real))
    ours = {f"plain {run.steps}": replace(PLAIN, steps=run.steps, size=size)}
    ours |= {f"specific {steps}": replace(SPECIFIC, steps=steps, size=size) for steps in run.specific}
    scores: dict[str, list[Score]] = {way: [] for way in (f"lucent {run.steps}", *ours)}
    sheets: dict[str, list[Tensor]] = {way: [] for way in scores}
    for layer in layers:
        channels = channels_of(network, layer, run.count)
        path = find_layer(network.layers, layer).path.removeprefix("backbone.network.")
        made = {f"lucent {run.steps}": _lucent(tool, run, other, path, channels, size, rivals)}
        for way, recipe in ours.items():
            made[way] = synthesize(network, layer, channels, recipe=recipe, statistics=known, seed=run.seed).images
        for way, pictures in made.items():
            scores[way].append(score(network, layer, channels, pictures, known.of(layer)))
            sheets[way].append(pictures)
        _rows(report, f"{run.name} {layer}", {way: each[-1] for way, each in scores.items()})
    for way, each in scores.items():
        target = 0.95 if way.startswith("specific") else None
        report.add(
            f"{run.name}, {len(layers)} layers, {way}: own channel first",
            statistics.mean(s.retrieval for s in each),
            at_least=target,
        )
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            save_image(torch.cat(sheets[way]), folder / f"{run.name}_{way.replace(' ', '_')}.png", nrow=run.count)


def _lucent(
    tool: SimpleNamespace, run: Run, network: nn.Module, path: str, channels: list[int], size: int, folder: Path
) -> Tensor:
    others = [other.steps for other in RUNS if other.name == run.name] if run in RUNS else []
    kept = [
        kept_picture(
            tool, run.name, network, path, channel, steps=run.steps, others=others, size=size, folder=folder,
            seed=run.seed,
        )
        for channel in channels
    ]  # fmt: skip
    return torch.cat(kept)


def _rows(report: Report, what: str, made: dict[str, Score]) -> None:
    rival = next(iter(made.values()))
    for way, own in made.items():
        plain, specific = way.startswith("plain"), way.startswith("specific")
        report.add(
            f"{what}, {way}: own channel first",
            own.retrieval,
            at_least=rival.retrieval if plain else 0.85 if specific else None,
            slope=own.slope,
            variation=own.variation,
        )
        report.add(
            f"{what}, {way}: times the largest real activation",
            own.activation,
            at_least=1.5 * rival.activation if plain else rival.activation if specific else None,
        )


def small(report: Report, name: str, network: Classifier, known: ActivationStatistics, count: int) -> None:
    """Report how true the default recipe's pictures of a small network are, layer by layer."""
    recipe = replace(NATURAL, size=network.image_size or network.backbone.image_size)
    for layer in convolutions(network.layers):
        largest = known.of(layer).largest
        alive = [channel for channel in range(len(largest)) if largest[channel] > 0]
        channels = alive[:: max(1, len(alive) // count)][:count]
        made = synthesize(network, layer, channels, recipe=recipe, statistics=known)
        multiples = known.of(layer).multiple(made.activation, channels)
        report.add(
            f"{name} {layer}: pictures that activate their filter more than the best real image",
            float((multiples >= 1).float().mean()), at_least=0.95, pictures=len(channels),
            own_first=float((made.rank == 0).float().mean()), support=float(made.support.median()),
        )  # fmt: skip


def fashion() -> tuple[Classifier, ActivationStatistics]:
    """Return FashionMNIST's published network and its statistics on 300 test images."""
    folder = real_data()
    assert folder is not None
    weights = str(folder / "weights" / "fashion_net_ex.pt")
    network = heads.keep(small_cnn_backbone(weights=weights), num_classes=10).eval()
    images = FashionMNIST(folder, train=False).data[:300, None].float() / 255
    return network, measure_statistics(network, images, convolutions(network.layers))


def of_run(folder: Path) -> tuple[Classifier, ActivationStatistics]:
    """Return the best network of a run and its statistics on the validation images."""
    run = open_run(folder / "checkpoints" / "best.ckpt")
    stored = {
        layer: {name: value for name, value in entry.items() if name != "state"}
        for layer, entry in run.state.store["statistics"].items()
    }
    return run.classifier, ActivationStatistics.from_dict(stored)


def main() -> None:
    options = arguments(
        __doc__ or "",
        pictures={"type": Path, "metavar": "FOLDER", "help": "save sheets of them here"},
        rivals={
            "type": Path, "metavar": "FOLDER", "default": Path("outputs/lucent"),
            "help": "keep lucent's pictures here, and make none twice (%(default)s)",
        },
        only={"metavar": "TEXT", "default": "", "help": "one network alone, or `alexnet 512`: at so many steps"},
        layers={"metavar": "NAME", "nargs": "+", "help": "these alone"},
        seed={"metavar": "N", "type": int, "default": 0, "help": "of all noise, lucent's and ours (%(default)s)"},
        run={"type": Path, "metavar": "FOLDER", "help": "judge this run's network too"},
    )  # fmt: skip
    report = Report("synthesis: truth")
    if options.only in "fashion":
        small(report, "fashion", *fashion(), 20)
    if options.run is not None:
        small(report, "run", *of_run(options.run), 12)
    for run in QUICK if options.quick else RUNS:
        if options.only in f"{run.name} {run.steps}":
            layers = tuple(options.layers or CONVOLUTIONS[run.name])
            compare(
                report,
                replace(run, seed=options.seed),
                layers,
                size=128,
                rivals=options.rivals,
                folder=options.pictures,
            )
    raise SystemExit(0 if report.show(options.json) else 1)


if __name__ == "__main__":
    main()
