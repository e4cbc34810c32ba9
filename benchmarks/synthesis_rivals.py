"""How soon do pictures activate their channels as much as those of other tools, and as specifically?

    FILTERSCOPE_REAL=<folder> python benchmarks/synthesis_rivals.py [--quick] [--json FILE] [--networks NAME …]

torch-lucent, dreamlens (its batched call) and Horama make pictures of 128 pixels with 128 steps and their defaults.
filterscope's pictures get as many steps, of 8, 16, 32 …, as they need until, on images of the network's own size, the
channels' activations (in units of their spread on real images) are as high on average, and as many channels are first
of their layer. Both sides are timed once, in processor time of one thread, because the rivals take minutes. At equal
steps and settings, dreamlens is compared in alternated pairs; `synthesis_speed.py` does that for torch-lucent.
`--quick` takes two layers of each network, one or two channels, and the defaults of torch-lucent and dreamlens alone.
The rivals come with the extra `benchmarks`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import torch
import torch.nn.functional as F
from explains import dreamlens_maco, horama_maco, respond
from report import Report, arguments, processor_time, ratio, ratio_of, version
from synthesis_networks import (
    CONVOLUTIONS,
    PLAIN,
    SIZE,
    SPECIFIC,
    channels_of,
    classifier,
    flowers,
    lucent,
    lucent_pictures,
    published,
)
from torch import Tensor, nn

from filterscope.analysis.synthesis import ActivationStatistics, measure_statistics, ranks, synthesize
from filterscope.models.classifier import Classifier
from filterscope.models.layers import find_layer

STEPS = (8, 16, 32, 64, 128, 256)
RECIPES = {"plain": PLAIN, "specific": SPECIFIC} | {
    # The network sees all of a picture that has its own size: what is measured is what was optimized.
    f"{name}, {SIZE} px": replace(recipe, size=SIZE, crop=None)
    for name, recipe in (("plain", PLAIN), ("specific", SPECIFIC))
}
DREAMLENS = {"width": 128, "height": 128, "steps": 128}
QUICK, QUICK_CHANNELS = ("torch-lucent", "dreamlens"), {"alexnet": 2, "vgg16": 1}
AHEAD = {"torch-lucent": 15.0, "dreamlens": 10.0, "Horama": 10.0}

T = TypeVar("T")
Pictures = Callable[[nn.Module, str, Sequence[int]], Tensor]
"""Takes torchvision's network, a module's path and channels; returns `(N, 3, H, W)` in [0, 1]."""


def by_lucent(network: nn.Module, path: str, channels: Sequence[int]) -> Tensor:
    """Return lucent's pictures, one call each: it has no batched one for different channels."""
    return torch.cat([lucent_pictures(lucent(), network, path, each, steps=[128], size=128)[0] for each in channels])


def by_dreamlens(network: nn.Module, path: str, channels: Sequence[int], **settings: float) -> Tensor:
    """Return the pictures of dreamlens' batched call."""
    from dreamlens import FeatureVisualizer, RenderConfig

    made = FeatureVisualizer(network, quiet=True).maximize_channels(
        path, list(channels), config=RenderConfig(**{**DREAMLENS, **settings})
    )
    return torch.cat([each.as_nchw() for each in made]) if isinstance(made, (list, tuple)) else made.as_nchw()


def one_by_one(make: Callable[[nn.Module, str, int], Tensor]) -> Pictures:
    """Return a function that makes pictures one after the other."""
    return lambda network, path, channels: torch.cat([make(network, path, each) for each in channels])


RIVALS: dict[str, Pictures] = {
    "torch-lucent": by_lucent,
    "dreamlens": by_dreamlens,
    "dreamlens maco": one_by_one(dreamlens_maco),
    "Horama maco": one_by_one(horama_maco),
}


def reached(
    network: Classifier, layer: str, channels: Sequence[int], pictures: Tensor, known: ActivationStatistics
) -> tuple[float, float]:
    """Return the mean activation in units of its spread on real images, and the share of channels that are first."""
    shown = F.interpolate(pictures.float().clamp(0, 1), (SIZE, SIZE), mode="bilinear", antialias=True)
    answered = respond(network, shown, [layer])[layer]
    scores = known.of(layer).scores(answered)[torch.arange(len(channels)), torch.tensor(channels)]
    first = (ranks(answered, list(channels), known.of(layer)) == 0).float().mean()
    return float(scores.mean()), float(first)


def time_to_reach(report: Report, name: str, layers: Sequence[str], count: int, rivals: Sequence[str]) -> None:
    """Report how many times as soon filterscope's pictures of each layer reach what each rival's reach.

    Its recipes are tried from the least work on, until all rivals are reached.
    """
    network, other = classifier(name), published(name)
    known = measure_statistics(network, flowers("train", 128) / 255, layers)
    tries = sorted((steps * RECIPES[recipe].seen ** 2, recipe, steps) for steps in STEPS for recipe in RECIPES)
    ratios: dict[str, list[tuple[float, float]]] = {rival: [] for rival in rivals}
    for layer in layers:
        channels = channels_of(network, layer, count)
        path = find_layer(network.layers, layer).path.removeprefix("backbone.network.")
        theirs: dict[str, tuple[float, float, float]] = {}
        for rival in rivals:
            torch.manual_seed(0)
            took, pictures = timed(partial(RIVALS[rival], other, path, channels))
            theirs[rival] = (took, *reached(network, layer, channels, pictures, known))
        synthesize(network, layer, channels, recipe=replace(PLAIN, steps=1))  # warm-up
        left = dict(theirs)
        for _work, recipe, steps in tries:
            own = replace(RECIPES[recipe], steps=steps)
            own_time, made = timed(partial(synthesize, network, layer, channels, recipe=own, statistics=known))
            own_score, own_first = reached(network, layer, channels, made.images, known)
            for rival, (took, score, first) in list(left.items()):
                if own_score >= score and own_first >= first:
                    del left[rival]
                    ratios[rival].append((took, own_time))
                    about = {"their_score": score, "their_share_first": first, "score": own_score}
                    about |= {"share_first": own_first, "recipe": recipe, "steps": steps}
                    what = f"{name} {layer}: times as soon as {rival}"
                    report.compare(what, ratio_of([(took, own_time)]), rival=named(rival), **about)
            if not left:
                break
        for rival, (_took, score, first) in left.items():
            what = f"{name} {layer}: {rival} reaches an activation that no recipe does"
            report.add(what, score, their_share_first=first)
    for rival, pairs in ratios.items():
        if pairs:
            logs = torch.tensor([took / own for took, own in pairs]).log()
            found = ratio_of(pairs)._replace(times=float(logs.mean().exp()))
            least = AHEAD[rival.split()[0]]
            what = f"{name}, geometric mean of {len(pairs)} of {len(layers)} layers: times as soon as {rival}"
            report.compare(what, found, rival=named(rival), at_least=least)


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Return the processor time in seconds of some work, and its result."""
    begun = processor_time()
    result = work()
    return processor_time() - begun, result


def equal_steps(report: Report, name: str, layers: Sequence[str], count: int, steps: int) -> None:
    """Report how many times more pictures a second come than from dreamlens' batched call at the same settings."""
    network, other = classifier(name), published(name)
    for layer in layers:
        channels = channels_of(network, layer, count)
        path = find_layer(network.layers, layer).path.removeprefix("backbone.network.")
        recipe = replace(PLAIN, steps=steps)
        found = ratio(
            partial(by_dreamlens, other, path, channels, steps=steps),
            partial(synthesize, network, layer, channels, recipe=recipe),
            processor=True,
        )
        report.compare(f"{name} {layer}, {steps} equal steps: times as fast", found, rival=version("dreamlens"))


def named(rival: str) -> str:
    """Return a rival with its version."""
    package, *rest = rival.split()
    return " ".join([version(package), *rest])


def main() -> int:
    """Measure."""
    networks = {"nargs": "+", "choices": list(CONVOLUTIONS), "default": list(CONVOLUTIONS), "metavar": "NAME"}
    options = arguments((__doc__ or "").splitlines()[0], networks=networks)
    torch.set_num_threads(1)
    report = Report("synthesis: rivals")
    for name in options.networks:
        if options.quick:
            time_to_reach(report, name, CONVOLUTIONS[name][1:3], QUICK_CHANNELS[name], QUICK)
        else:
            time_to_reach(report, name, CONVOLUTIONS[name], 6, list(RIVALS))
            equal_steps(report, name, CONVOLUTIONS[name], 16, 32)
    return 0 if report.show(options.json) else 1


if __name__ == "__main__":
    raise SystemExit(main())
