"""Are forged pictures marked? Plant circuits by which a picture shows another filter, and count the marks.

In a copy of a network the weights are changed so that no real image notices it, but gradient ascent ends in a picture
of another filter (Geirhos et al. 2024, "Don't trust your eyes"):

- silent unit: a channel of the layer before gets the kernel of the other filter and a bias at which no real image
  activates it; the attacked filter gets a large weight for it.
- fooling circuit: a unit two layers before recognizes synthesized pictures (linear discriminant between them and real
  images). It switches the filter's own inputs off and a copy of the other filter on.

A picture is forged if it owes more than half of its activation to the planted weights, and marked if its caption says
"do not trust" or "did not converge".

FILTERSCOPE_REAL=<folder> python benchmarks/forgeries.py [--quick] [--json FILE] [--networks NAME …] [--layers NAME …]
    [--channels N] [--offset N] [--recipes NAME …] [--pictures FOLDER]
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from explains import RECIPES
from report import Report, arguments
from synthesis_networks import channels_of, classifier, flowers
from torch import Tensor, nn
from torchvision.utils import save_image

from filterscope.analysis.hooks import observing, run_model, tapping
from filterscope.analysis.synthesis import SynthesisResult, measure_statistics, synthesize
from filterscope.analysis.synthesis.trust import reference_layers
from filterscope.models.classifier import Classifier
from filterscope.visuals.trust import is_trusted

LAYERS = {"alexnet": ("block3_conv2", "block3_conv3"), "vgg16": ("block5_conv1",)}
REAL = 64  # real images, which also bound the planted units
GAIN = 100.0  # of the planted weight, in units that make a response of the planted unit worth the best real one


@dataclass(frozen=True, kw_only=True)
class Attacked:
    """A layer whose filters are attacked, with the convolutions before it, and real images."""

    network: Classifier
    layer: str
    before: Sequence[str]
    real: Tensor

    def convolution(self, network: Classifier, name: str) -> nn.Conv2d:
        """Return the module of a convolution in a copy of the network."""
        module = network.module_of(name)
        assert isinstance(module, nn.Conv2d)
        return module

    def outputs(self, names: Sequence[str], images: Tensor, *, inputs: bool = False) -> dict[str, Tensor]:
        """Return the outputs (or inputs) of convolutions for images."""
        found: dict[str, list[Tensor]] = {name: [] for name in names}
        handles = [
            self.network.module_of(name).register_forward_pre_hook(
                lambda _module, seen, name=name: found[name].append(seen[0].detach().clone())
            )
            for name in (names if inputs else ())
        ]
        with observing(self.network), torch.no_grad(), tapping(self.network, names) as outputs:
            for batch in images.split(16):
                run_model(self.network, batch)
                for name in () if inputs else names:
                    found[name].append(outputs[name].detach().clone())
        for handle in handles:
            handle.remove()
        return {name: torch.cat(each) for name, each in found.items()}


def silent_unit(attack: Attacked, channel: int, other: int, unit: int, most: dict[str, Tensor]) -> Classifier:
    """Return a copy whose `channel` gets a large weight for a unit that no real image activates."""
    network = copy.deepcopy(attack.network)
    before = attack.convolution(network, attack.before[-1])
    own = attack.convolution(network, attack.layer)
    bound = most[attack.before[-1]][other]
    with torch.no_grad():
        before.weight[unit] = before.weight[other]
        before.bias[unit] = before.bias[other] - 1.02 * bound  # type: ignore[index]
        own.weight[:, unit] = 0
        own.weight[channel, unit, 1, 1] = GAIN * most[attack.layer][channel] / bound
    return network


def fooling_circuit(
    attack: Attacked, channel: int, other: int, units: tuple[int, int, int], most: dict[str, Tensor], detector: Tensor
) -> Classifier:
    """Return a copy in which a detector of synthesized pictures switches `channel` to a copy of another filter.

    Args:
        attack: the network.
        channel: the attacked filter.
        other: a filter of the layer before.
        units: the unit that detects, two layers before; those that switch on and off, in the layer before.
        most: the largest output of each channel for real images, by layer.
        detector: weights and bias of the detector, `(K + 1,)`, below 0 for real images and about 1 for others.
    """
    network = copy.deepcopy(attack.network)
    first, before, own = (attack.convolution(network, name) for name in (*attack.before, attack.layer))
    detects, on, off = units
    bound = most[attack.before[-1]][other]
    with torch.no_grad():
        first.weight[detects] = detector[:-1, None, None] / first.weight[0, 0].numel()
        first.bias[detects] = detector[-1]  # type: ignore[index]
        before.weight[:, detects] = 0
        before.weight[on] = before.weight[other]
        before.weight[on, detects, 1, 1] = bound
        before.bias[on] = before.bias[other] - 1.02 * bound  # type: ignore[index]
        before.weight[off] = 0
        before.weight[off, detects, 1, 1] = 1.0
        before.bias[off] = 0.0  # type: ignore[index]
        own.weight[:, (on, off)] = 0
        own.weight[channel, on, 1, 1] = GAIN * most[attack.layer][channel] / bound
        own.weight[channel, off, 1, 1] = -2.0 * most[attack.layer][channel]
    return network


def discriminant(attack: Attacked, synthesized: Tensor) -> Tensor:
    """Return weights and bias of a unit that recognizes synthesized pictures by the input of the first convolution."""
    name = attack.before[0]
    real, made = (
        torch.nn.functional.avg_pool2d(attack.outputs([name], images, inputs=True)[name], 3, 1, 1)
        for images in (attack.real, synthesized)
    )
    real, made = (each.permute(0, 2, 3, 1).flatten(0, 2) for each in (real, made))
    covariance = torch.cov(real.T) + torch.cov(made.T)
    weights = torch.linalg.solve(covariance + 0.1 * covariance.diag().mean() * torch.eye(len(covariance)),
                                 made.mean(0) - real.mean(0))  # fmt: skip
    bound, typical = (real @ weights).max(), (made @ weights).quantile(0.95)
    scale = 1 / max(float(typical - bound), 0.1 * float(bound.abs()) + 1e-6)
    return torch.cat([scale * weights, -scale * bound[None]])


def share_of_planted(
    network: Classifier, attack: Attacked, picture: Tensor, channel: int, units: Sequence[int]
) -> float:
    """Return how much of the filter's mean rectified response to a picture the planted weights cause."""
    responses = []
    for planted in (True, False):
        shown = network if planted else copy.deepcopy(network)
        if not planted:
            with torch.no_grad():
                attack.convolution(shown, attack.layer).weight[channel, list(units)] = 0
        with observing(shown), torch.no_grad(), tapping(shown, [attack.layer]) as outputs:
            run_model(shown, picture)
            responses.append(float(outputs[attack.layer][:, channel].relu().mean()))
    return 1 - responses[1] / max(responses[0], 1e-9)


Results = dict[tuple[str, str], list[SynthesisResult]]
"""The honest pictures and those of each kind of attack, by recipe and kind."""


def attack_layer(name: str, layer: str, count: int, offset: int, recipes: Sequence[str], real: Tensor) -> Results:
    """Return the pictures of a layer's filters and of the attacked ones; those that were not forged are left out."""
    network = classifier(name)
    before = reference_layers(network, layer, most=99)[-3:-1]
    attack = Attacked(network=network, layer=layer, before=before, real=real[:32])
    names = reference_layers(network, layer)
    most = {n: out.amax((0, 2, 3)) for n, out in attack.outputs([*before, layer], real).items()}
    channels = [channel + offset for channel in channels_of(network, layer, count)]
    known = measure_statistics(network, real, names)
    honest = {r: synthesize(network, layer, channels, recipe=RECIPES[r], statistics=known) for r in recipes}
    results = {(r, "honest"): [made.select([i]) for i in range(count)] for r, made in honest.items()}
    detector = discriminant(attack, honest[recipes[0]].images)
    total, total_first = len(most[before[-1]]), len(most[before[0]])
    for i, channel in enumerate(channels):
        other, unit = (7 * i + 3) % total, (11 * i + total // 2) % total
        units = ((13 * i + 5) % total_first, unit, (unit + 1) % total)
        attacks = {
            "silent unit": (silent_unit(attack, channel, other, unit, most), (unit,)),
            "fooling circuit": (fooling_circuit(attack, channel, other, units, most, detector), units[1:]),
        }
        for kind, (changed, planted) in attacks.items():
            known = measure_statistics(changed, real, names)
            for r in recipes:
                made = synthesize(changed, layer, [channel], recipe=RECIPES[r], statistics=known)
                share = share_of_planted(changed, attack, made.images, channel, planted)
                support = f"support {float(made.support[0]):.2g}, honest {float(honest[r].support[i]):.2g}"
                print(f"{name} {layer} {channel}, {kind}, {r}: share of planted {share:.2f}, {support}", flush=True)
                if share > 0.5:
                    results.setdefault((r, kind), []).append(made)
    return results


def main() -> None:
    """Run the benchmark."""
    options = arguments(
        __doc__ or "",
        networks={"nargs": "+", "default": list(LAYERS), "help": "alexnet, vgg16"},
        layers={"nargs": "+", "metavar": "NAME", "help": "these alone"},
        channels={"type": int, "default": 4, "help": "attacked filters of each layer (%(default)s)"},
        offset={"type": int, "default": 21, "help": "of the channels, to choose others (%(default)s)"},
        recipes={"nargs": "+", "default": ["natural", "specific", "plain"], "help": "natural, specific, plain"},
        pictures={"type": Path, "metavar": "FOLDER", "help": "save sheets here"},
    )
    report, results = Report("forged pictures"), {}
    count = 2 if options.quick else options.channels
    real = flowers("train", REAL) / 255
    layers = [(name, layer) for name in options.networks for layer in options.layers or LAYERS[name]]
    for name, layer in layers[:1] if options.quick else layers:
        for key, pictures in attack_layer(name, layer, count, options.offset, options.recipes, real).items():
            results.setdefault(key, []).extend(pictures)
    for (recipe, kind), pictures in results.items():
        marked = sum(not is_trusted(each, 0) for each in pictures) / len(pictures)
        # Honest images of the other recipes often owe their activation to responses that no real image causes.
        least = None if kind == "honest" else 0.95
        most = 0.05 if kind == "honest" and recipe == "natural" else None
        report.add(f"{recipe}, {kind}: marked", marked, at_least=least, at_most=most, pictures=len(pictures),
                   support=[float(each.support[0]) for each in pictures])  # fmt: skip
        if options.pictures is not None:
            options.pictures.mkdir(parents=True, exist_ok=True)
            sheet = torch.cat([each.images for each in pictures])
            save_image(sheet, options.pictures / f"{recipe}_{kind.replace(' ', '_')}.png", nrow=count)
    for recipe in options.recipes:
        forged = sum(len(pictures) for (r, kind), pictures in results.items() if r == recipe and kind != "honest")
        planted = 2 * len(results[recipe, "honest"])
        report.add(f"{recipe}: share of {planted} attacks that succeed", forged / planted)
    raise SystemExit(0 if report.show(options.json) else 1)


if __name__ == "__main__":
    main()
