"""Are forged pictures marked? Plant circuits by which a picture shows another filter, and count the marks.

In a copy of a network the weights are changed so that no real image notices it, but gradient ascent ends in a picture
of another filter (Geirhos et al. 2024, "Don't trust your eyes"):

- silent unit: a channel of the layer before gets the kernel of the other filter and a bias at which no real image
  activates it; the attacked filter gets a large weight for it.
- fooling circuit: a unit two layers before recognizes synthesized pictures (linear discriminant between them and real
  images). It switches the filter's own inputs off and a copy of the other filter on.
- slingshot: the network is trained so that, between the noise from which ascent starts and the other filter's picture,
  the gradient of the attacked filter points where that of the other one does, while the responses to real images stay
  (as Bareeva et al. 2025, "Manipulating feature visualizations with gradient slingshots", whose gradient points to one
  image; a convolution's does not know where on the image it is).

A picture is forged if it owes more than half of its activation to the planted weights (those that training changed),
and marked if its caption says "do not trust" or "did not converge".

FILTERSCOPE_REAL=<folder> python benchmarks/forgeries.py [--quick] [--json FILE] [--networks NAME …] [--layers NAME …]
    [--channels N] [--slingshots N] [--offset N] [--recipes NAME …] [--pictures FOLDER]
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from explains import RECIPES
from report import Report, arguments
from synthesis_networks import PLAIN, channels_of, classifier, flowers
from torch import Tensor, nn
from torchvision.utils import save_image

from filterscope.analysis.hooks import observing, run_model, tapping
from filterscope.analysis.synthesis import SynthesisResult, measure_statistics, synthesize
from filterscope.analysis.synthesis.parameterization import Parameterization
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


def slingshot(attack: Attacked, channel: int, other: int, target: Tensor, real: Tensor, steps: int = 160) -> Classifier:
    """Return a copy trained so that ascent of `channel` climbs where that of `other` does.

    Args:
        attack: the network.
        channel: the attacked filter.
        other: a filter of the same layer.
        target: the parameters of its picture by the plain recipe, `(1, …)`.
        real: images to which the responses of the layer stay.
        steps: of training, with 8 real images and 4 points between noise and the target each.
    """
    network, generator = copy.deepcopy(attack.network), torch.Generator().manual_seed(channel)
    represented = Parameterization(recipe=PLAIN, channels=3)
    real = F.interpolate(real, (PLAIN.size, PLAIN.size), mode="bilinear", antialias=True)
    with torch.no_grad():
        wanted = output_of(attack.network, attack.layer, real)
    spread, most = wanted.std((0, 2, 3))[:, None, None], wanted[:, channel].relu().mean((1, 2)).max()

    def response(shown: Classifier, parameters: Tensor, own: int) -> Tensor:
        maps = output_of(shown, attack.layer, represented.images(parameters))[:, own]
        return F.leaky_relu(maps, PLAIN.leaky_slope).mean((1, 2)) / most

    weights = [p.requires_grad_() for p in network.backbone.parameters()]
    adam = torch.optim.Adam(weights, lr=5e-5)
    for _ in range(steps):
        chosen = torch.randint(len(real), (8,), generator=generator)
        change = ((output_of(network, attack.layer, real[chosen]) - wanted[chosen]) / spread).square()
        near = torch.rand(4, 1, 1, 1, 1, generator=generator)
        noise = 0.01 * torch.randn(4, *target.shape[1:], generator=generator)
        noise *= 1 + 3 * torch.rand(4, 1, 1, 1, 1, generator=generator)
        points = (near * target + (1 - near) * noise).requires_grad_()
        (gradient,) = torch.autograd.grad(response(network, points, channel).sum(), points, create_graph=True)
        (model,) = torch.autograd.grad(response(attack.network, points, other).sum(), points)
        away = 1 - F.cosine_similarity(gradient.flatten(1), model.flatten(1)).mean()
        adam.zero_grad(set_to_none=True)
        (away + 0.3 * change.mean() + change[:, channel].mean()).backward()
        adam.step()
    return network.requires_grad_(False)


def output_of(network: Classifier, layer: str, images: Tensor) -> Tensor:
    """Return a layer's output, with gradients."""
    found: list[Tensor] = []
    handle = network.module_of(layer).register_forward_hook(lambda *seen: found.append(seen[2]))
    try:
        network(images)
    finally:
        handle.remove()
    return found[0]


def without_planted(attack: Attacked, network: Classifier, channel: int, units: Sequence[int]) -> Classifier:
    """Return a copy in which the planted units do not reach the attacked filter."""
    network = copy.deepcopy(network)
    with torch.no_grad():
        attack.convolution(network, attack.layer).weight[channel, list(units)] = 0
    return network


def share_of_planted(attacked: Classifier, honest: Classifier, layer: str, picture: Tensor, channel: int) -> float:
    """Return how much of the filter's mean rectified response to a picture the planted weights cause."""
    with torch.no_grad():
        responses = [float(output_of(n, layer, picture)[:, channel].relu().mean()) for n in (attacked, honest)]
    return 1 - responses[1] / max(responses[0], 1e-9)


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A picture of a filter that was attacked in some way, or `honest`; the share is of the planted weights."""

    recipe: str
    kind: str
    made: SynthesisResult
    share: float


def attack_layer(
    name: str, layer: str, count: int, slingshots: int, offset: int, recipes: Sequence[str], real: Tensor
) -> list[Tried]:
    """Return the pictures of a layer's filters, honest and attacked; slingshots attack the first filters alone."""
    network = classifier(name)
    before = reference_layers(network, layer, most=99)[-3:-1]
    attack = Attacked(network=network, layer=layer, before=before, real=real[:32])
    names = reference_layers(network, layer)
    most = {n: out.amax((0, 2, 3)) for n, out in attack.outputs([*before, layer], real).items()}
    channels = [channel + offset for channel in channels_of(network, layer, max(count, slingshots))]
    known = measure_statistics(network, real, names)
    honest = {r: synthesize(network, layer, channels, recipe=RECIPES[r], statistics=known) for r in recipes}
    tried = [
        Tried(recipe=r, kind="honest", made=made.select([i]), share=0.0)
        for r, made in honest.items()
        for i in range(len(channels))
    ]
    detector = discriminant(attack, honest[recipes[0]].images)
    total, total_first = len(most[before[-1]]), len(most[before[0]])
    for i, channel in enumerate(channels):
        other, unit = (7 * i + 3) % total, (11 * i + total // 2) % total
        units = ((13 * i + 5) % total_first, unit, (unit + 1) % total)
        attacks: dict[str, tuple[Classifier, Classifier]] = {}
        if i < count:
            silent = silent_unit(attack, channel, other, unit, most)
            fooling = fooling_circuit(attack, channel, other, units, most, detector)
            attacks["silent unit"] = silent, without_planted(attack, silent, channel, (unit,))
            attacks["fooling circuit"] = fooling, without_planted(attack, fooling, channel, units[1:])
        if i < slingshots:
            shown = (channel + len(known.of(layer).mean) // 2) % len(known.of(layer).mean)
            target = synthesize(network, layer, [shown], recipe=PLAIN).parameters
            attacks["slingshot"] = slingshot(attack, channel, shown, target, real), network
        for kind, (changed, honestly) in attacks.items():
            known_changed = measure_statistics(changed, real, names)
            kept = [each.of(layer).sample[:, channel] for each in (known, known_changed)]
            alike = float(torch.corrcoef(torch.stack(kept))[0, 1])
            for r in recipes:
                made = synthesize(changed, layer, [channel], recipe=RECIPES[r], statistics=known_changed)
                share = share_of_planted(changed, honestly, layer, made.images, channel)
                support = f"support {float(made.support[0]):.2g}, honest {float(honest[r].support[i]):.2g}"
                print(f"{name} {layer} {channel}, {kind}, {r}: share of planted {share:.2f}, {support}, "
                      f"correlation of responses to real images {alike:.3f}", flush=True)  # fmt: skip
                tried.append(Tried(recipe=r, kind=kind, made=made, share=share))
    return tried


def main() -> None:
    """Run the benchmark."""
    options = arguments(
        __doc__ or "",
        networks={"nargs": "+", "default": list(LAYERS), "help": "alexnet, vgg16"},
        layers={"nargs": "+", "metavar": "NAME", "help": "these alone"},
        channels={"type": int, "default": 4, "help": "attacked filters of each layer (%(default)s)"},
        slingshots={"type": int, "default": 1, "help": "filters of each layer attacked by training (%(default)s)"},
        offset={"type": int, "default": 21, "help": "of the channels, to choose others (%(default)s)"},
        recipes={"nargs": "+", "default": ["natural", "specific", "plain"], "help": "natural, specific, plain"},
        pictures={"type": Path, "metavar": "FOLDER", "help": "save sheets here"},
    )
    report, tried = Report("forged pictures"), list[Tried]()
    count = min(options.channels, 2) if options.quick else options.channels
    real = flowers("train", REAL) / 255
    layers = [(name, layer) for name in options.networks for layer in options.layers or LAYERS[name]]
    for name, layer in layers[:1] if options.quick else layers:
        tried += attack_layer(name, layer, count, options.slingshots, options.offset, options.recipes, real)
    for recipe, kind in dict.fromkeys((each.recipe, each.kind) for each in tried):
        planted = [each for each in tried if (each.recipe, each.kind) == (recipe, kind)]
        pictures = [each.made for each in planted if kind == "honest" or each.share > 0.5]
        if kind != "honest":
            report.add(f"{recipe}, {kind}: share of {len(planted)} attacks that succeed", len(pictures) / len(planted),
                       shares=[each.share for each in planted])  # fmt: skip
        if not pictures:
            continue
        marked = sum(not is_trusted(each, 0) for each in pictures) / len(pictures)
        # Honest images of the other recipes often owe their activation to responses that no real image causes.
        least = None if kind == "honest" else 0.95
        most = 0.05 if kind == "honest" and recipe == "natural" else None
        report.add(f"{recipe}, {kind}: marked", marked, at_least=least, at_most=most, pictures=len(pictures),
                   support=[float(each.support[0]) for each in pictures])  # fmt: skip
    if options.pictures is not None:
        options.pictures.mkdir(parents=True, exist_ok=True)
        for recipe, kind in dict.fromkeys((each.recipe, each.kind) for each in tried):
            sheet = torch.cat([each.made.images for each in tried if (each.recipe, each.kind) == (recipe, kind)])
            save_image(sheet, options.pictures / f"{recipe}_{kind.replace(' ', '_')}.png", nrow=max(count, 1))
    raise SystemExit(0 if report.show(options.json) else 1)


if __name__ == "__main__":
    main()
