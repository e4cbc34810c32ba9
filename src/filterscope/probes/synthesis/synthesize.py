"""Synthesis: one picture for each channel asked for, made in fixed micro-batches."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.layers import find_layer
from filterscope.probes.observing import observing
from filterscope.probes.synthesis.ascent import ascend, in_bf16
from filterscope.probes.synthesis.images import Parameterisation, shown
from filterscope.probes.synthesis.objectives import (
    Channel,
    Diversity,
    Logit,
    Maker,
    Neuron,
    Objective,
    Specific,
    Sum,
    mean_response,
)
from filterscope.probes.synthesis.recipe import Recipe
from filterscope.probes.synthesis.truncate import Reach, Truncated
from filterscope.probes.synthesis.trust import ActivationStatistics, LayerStatistics, ranks

_MOST_TOGETHER = 16
_CACHED = 10 * 2**20  # bytes of one activation of the whole micro-batch; beyond, convolutions wait for memory


@dataclass(frozen=True, kw_only=True)
class Synthesis:
    """Pictures and how far to trust them; everything lies on the CPU.

    Args:
        images: `(N, C, size, size)` in [0, 1].
        parameters: what a later ascent starts from when it is given as `start`.
        curve: `(steps, N)`, the objective under the transforms.
        activation: `(N,)`, the rectified mean of the own channel's map at the end, without transforms.
        rank: `(N,)`, how many channels of the layer the picture excites more than its own; 0 is best.
        rose: `(N,)`, whether the activation ended above that of the noise from which a cold ascent starts.
        responses: `(N, K)`, the rectified means of all channels of the layer.
    """

    images: Tensor
    parameters: Tensor
    curve: Tensor
    activation: Tensor
    rank: Tensor
    rose: Tensor
    responses: Tensor


def synthesize(
    classifier: Classifier,
    layer: str,
    channels: Sequence[int],
    *,
    recipe: Recipe,
    seed: int = 0,
    start: Tensor | None = None,
    statistics: ActivationStatistics | None = None,
    micro_batch: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    objective: Maker | None = None,
) -> Synthesis:
    """Synthesize one picture for each of a layer's channels.

    Args:
        classifier: is left exactly as it was, also after an exception.
        layer: a name as `Classifier.layers` knows it; a convolution's name means its output before the ReLU.
        channels: a channel may stand in it more than once: its pictures then start from different noise.
        recipe: how.
        seed: with layer and channel it decides every random draw of a picture.
        start: `Synthesis.parameters` of an earlier call, `(N, …)`, or `start_from(images, recipe)`; None: noise.
        statistics: of real images, for the specific objective and the ranks; None: taken on noise with a natural
            spectrum for the objective, and channels are ranked by activation.
        micro_batch: how many pictures ascend together; None: `micro_batch_size`. The same number gives the same bits
            wherever a channel stands.
        progress: is told after every step how many of how many are done.
        objective: makes another objective than the recipe's.

    Raises:
        UserError: an unknown layer, one without channels, a channel that it does not have, a size that the network
            cannot take, a start of another shape.
    """
    with observing(classifier), torch.no_grad():
        layer = find_layer(classifier.layers, layer).name
        exact = Truncated(classifier, [layer], size=recipe.size, normalize=recipe.normalize)
        known = statistics.layers.get(layer) if statistics is not None else None
        named = _maker(recipe, layer, known, exact) if objective is None else objective
        layers = tuple(dict.fromkeys((layer, *named(list(channels)[:1] or [0]).layers)))
        bf16 = in_bf16(recipe, exact.device)
        network = exact
        if bf16 or layers != (layer,):
            network = Truncated(classifier, layers, size=recipe.size, normalize=recipe.normalize, bf16=bf16)
        parameterisation = Parameterisation(recipe=recipe, channels=classifier.in_channels)
        _check(channels, network, layer, parameterisation, start)
        count = micro_batch or micro_batch_size(network.reach, recipe, network.device, len(channels))
        chunks = [range(i, min(i + count, len(channels))) for i in range(0, len(channels), count)]
        parts = []
        for done, chunk in enumerate(chunks):
            told = _tell(progress, done * recipe.steps, len(chunks) * recipe.steps)
            parts.append(_chunk(network, exact, layer, channels, chunk, count, recipe, seed, start, named, known, told))
        return _joined(parts)


def start_from(images: Tensor, recipe: Recipe) -> Tensor:
    """Return the parameters that stand for given images `(N, C, size, size)` in [0, 1], to start from."""
    if images.dim() != 4 or images.shape[2:] != (recipe.size, recipe.size):
        raise UserError(
            f"a start of shape {tuple(images.shape)} does not fit; it must be (N, C, {recipe.size}, {recipe.size})"
        )
    return Parameterisation(recipe=recipe, channels=images.shape[1]).parameters(images)


def micro_batch_size(reach: Reach, recipe: Recipe, device: torch.device, pictures: int) -> int:
    """Return how many pictures ascend together: what the recipe's memory holds, on a CPU what its cache holds.

    Args:
        reach: what one picture makes on the way to the layer.
        recipe: whose `memory` and precision count.
        device: where the network lies.
        pictures: how many there are in all; the batch is no larger.

    Raises:
        UserError: there is no memory for a single one.
    """
    width = 2 if in_bf16(recipe, device) else 4
    needed = 2 * width * reach.elements  # every activation and its gradient
    fits = int(recipe.memory * 2**30 / needed)
    if fits < 1:
        raise UserError(
            f"one picture needs {needed / 2**30:.2g} GiB for activations, recipe.memory is {recipe.memory:g}; "
            "choose a smaller recipe.size or more memory"
        )
    useful = _MOST_TOGETHER if device.type != "cpu" else max(1, _CACHED // (width * reach.largest))
    return max(1, min(fits, useful, _MOST_TOGETHER, pictures))


def share(pictures: int, rank: int, ranks: int) -> range:
    """Return which of `pictures` pictures a rank makes: every `ranks`-th, so that all have equally many (± 1)."""
    return range(rank, pictures, ranks)


def _check(
    channels: Sequence[int],
    network: Truncated,
    layer: str,
    parameterisation: Parameterisation,
    start: Tensor | None,
) -> None:
    count = network.reach.shapes[layer][0]
    wrong = [channel for channel in channels if not 0 <= channel < count]
    if wrong:
        raise UserError(f"channel {wrong[0]} of {layer} does not exist; it has 0 to {count - 1}")
    if not channels:
        raise UserError(f"no channels of {layer} to synthesize; it has 0 to {count - 1}")
    shape = (len(channels), *parameterisation.shape)
    if start is not None and tuple(start.shape) != shape:
        raise UserError(f"a start of shape {tuple(start.shape)} does not fit; this recipe's has {shape}")


def _tell(progress: Callable[[int, int], None] | None, before: int, total: int) -> Callable[[int], None]:
    return (lambda step: progress(before + step, total)) if progress is not None else (lambda _step: None)


def _maker(recipe: Recipe, layer: str, known: LayerStatistics | None, exact: Truncated) -> Maker:
    if "specific" in recipe.weights and known is None:
        noise = _natural_noise(exact.network.in_channels, recipe.size).to(exact.device)
        known = LayerStatistics.of_responses(
            torch.cat([_responses(exact, layer, part) for part in torch.split(noise, 8)])
        )

    def make(channels: Sequence[int]) -> Objective:
        terms = [
            (weight, _term(name, layer, tuple(channels), recipe, known)) for name, weight in recipe.weights.items()
        ]
        return terms[0][1] if len(terms) == 1 and terms[0][0] == 1.0 else Sum(terms=tuple(terms))

    return make


def _term(name: str, layer: str, channels: tuple[int, ...], recipe: Recipe, known: LayerStatistics | None) -> Objective:
    if name == "specific" and known is not None:
        return Specific(layer=layer, channels=channels, mean=known.mean, std=known.spread, leak=recipe.leak)
    if name == "channel":
        return Channel(layer=layer, channels=channels, leak=recipe.leak)
    kinds: dict[str, type[Neuron | Logit | Diversity]] = {"neuron": Neuron, "logit": Logit, "diversity": Diversity}
    return kinds[name](layer=layer, channels=channels)


def _natural_noise(channels: int, size: int) -> Tensor:
    """Return 64 images in [0, 1] whose spectrum falls with frequency as that of natural images does."""
    parameterisation = Parameterisation(recipe=Recipe(size=size), channels=channels)
    return parameterisation.images(60 * parameterisation.draw([torch.Generator().manual_seed(i) for i in range(64)]))


def _generator(layer: str, channel: int, face: int, seed: int) -> torch.Generator:
    digest = hashlib.sha256(f"{layer} {channel} {face} {seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def _chunk(
    network: Truncated,
    exact: Truncated,
    layer: str,
    channels: Sequence[int],
    chunk: range,
    count: int,
    recipe: Recipe,
    seed: int,
    start: Tensor | None,
    make: Maker,
    known: LayerStatistics | None,
    told: Callable[[int], None],
) -> Synthesis:
    places = [*chunk, *[chunk[-1]] * (count - len(chunk))]
    own = [channels[place] for place in places]
    faces = [channels[:place].count(channels[place]) for place in places]
    generators = [_generator(layer, c, face, seed) for c, face in zip(own, faces, strict=True)]
    parameterisation = Parameterisation(recipe=recipe, channels=network.network.in_channels)
    noise = parameterisation.draw(generators).to(exact.device)
    begun = noise if start is None else start[places].to(exact.device)
    before = _responses(exact, layer, parameterisation.images(noise))
    parameters, curve = ascend(
        network, make(own), parameterisation, begun, generators, warm=start is not None, stepped=told
    )
    images = parameterisation.images(parameters)
    responses = _responses(exact, layer, images)
    index = torch.arange(count), torch.tensor(own)
    keep = slice(0, len(chunk))
    return Synthesis(
        images=(images if recipe.bounded else shown(images)).cpu()[keep],
        parameters=parameters.cpu()[keep],
        curve=curve.cpu()[:, keep],
        activation=responses[index][keep],
        rank=ranks(responses, own, known)[keep],
        rose=(responses[index] > before[index])[keep],
        responses=responses[keep],
    )


def _responses(network: Truncated, layer: str, images: Tensor) -> Tensor:
    return mean_response(network(images)[layer]).cpu()


def _joined(parts: Sequence[Synthesis]) -> Synthesis:
    joined = {
        name: torch.cat([getattr(part, name) for part in parts], dim=1 if name == "curve" else 0)
        for name in Synthesis.__dataclass_fields__
    }
    return Synthesis(**joined)
