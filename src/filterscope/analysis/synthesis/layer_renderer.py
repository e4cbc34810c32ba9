"""All that pictures of one layer need, set up once; it makes one micro-batch after another."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from filterscope.analysis.hooks import device_of
from filterscope.analysis.synthesis.micro_batches import check_channels, micro_batch_size
from filterscope.analysis.synthesis.named import named
from filterscope.analysis.synthesis.network import ForwardProfile, TruncatedNetwork
from filterscope.analysis.synthesis.objectives import Maker, mean_along, mean_response
from filterscope.analysis.synthesis.optimize import in_bf16, optimize
from filterscope.analysis.synthesis.parameterization import Parameterization, shown
from filterscope.analysis.synthesis.recipe import Recipe
from filterscope.analysis.synthesis.trust import LayerStatistics, ranks
from filterscope.models.classifier import Classifier
from filterscope.models.layers import find_layer


@dataclass(frozen=True, kw_only=True)
class Synthesis:
    """Pictures and how far to trust them; everything lies on the CPU.

    Args:
        images: `(N, C, size, size)` in [0, 1].
        parameters: what a later ascent starts from when it is given as `start`.
        curve: `(steps, N)`, the objective under the transforms.
        activation: `(N,)`, the rectified mean of the own channel's map at the end, without transforms.
        rank: `(N,)`, how many channels of the layer the picture excites more than its own; 0 is best.
        rose: `(N,)`, whether the activation ended above that of the noise from which a cold ascent starts, or above
            those of all real images; where a channel shall be excited little, whether the objective ended above its
            start.
        responses: `(N, K)`, the rectified means of all channels of the layer.
    """

    images: Tensor
    parameters: Tensor
    curve: Tensor
    activation: Tensor
    rank: Tensor
    rose: Tensor
    responses: Tensor

    def at(self, places: Sequence[int]) -> "Synthesis":
        """Return the pictures at some places."""
        chosen = list(places)
        return Synthesis(**{n: v[:, chosen] if n == "curve" else v[chosen] for n, v in vars(self).items()})


def placed(parts: Sequence[tuple[Sequence[int], Synthesis]]) -> Synthesis:
    """Return the pictures of all parts, each at the place it is said to be for; the places are 0 to one less than all.

    What lies right already is not copied.
    """
    order = [place for places, _ in parts for place in places]
    made = [pictures for _, pictures in parts]
    whole = made[0] if len(made) == 1 else _joined(made)
    if order == list(range(len(order))):
        return whole
    return whole.at(sorted(range(len(order)), key=order.__getitem__))


def _joined(parts: Sequence[Synthesis]) -> Synthesis:
    names = Synthesis.__dataclass_fields__
    return Synthesis(**{n: torch.cat([getattr(part, n) for part in parts], dim=int(n == "curve")) for n in names})


class LayerRenderer:
    """Makes pictures of a layer's channels. Use it inside `observing` and without gradients.

    Args:
        classifier: stays as it was.
        layer: a name as `Classifier.layers` knows it.
        recipe: how.
        statistics: of real images, for the specific objective and the ranks, or None.
        objective: makes another objective than the recipe's.
        directions: `(D, K)`, to make pictures of instead of channels; `statistics` are of them then.
        reach: of the layer at the recipe's size, where it is known.
        network: a `twin` that serves all workbenches whose recipes agree in `normalize` and precision, or None.

    Raises:
        UserError: an unknown layer, one without channels, a size that the network cannot take.
    """

    def __init__(
        self,
        classifier: Classifier,
        layer: str,
        *,
        recipe: Recipe,
        statistics: LayerStatistics | None = None,
        objective: Maker | None = None,
        directions: Tensor | None = None,
        reach: ForwardProfile | None = None,
        network: Classifier | None = None,
    ) -> None:
        self.layer = find_layer(classifier.layers, layer).name
        self.recipe = recipe
        self.known = statistics
        self.directions = directions
        self.parameterisation = Parameterization(recipe=recipe, channels=classifier.in_channels)
        layers = (self.layer,) if objective is None else tuple(dict.fromkeys((self.layer, *objective([0]).layers)))
        self.network = TruncatedNetwork(
            classifier,
            layers,
            size=recipe.size,
            normalize=recipe.normalize,
            bf16=in_bf16(recipe, device_of(classifier)),
            reach=reach,
            network=network,
        )
        self.objective = objective or named(recipe, self.layer, statistics, self.network, directions)

    def check_channels(self, channels: Sequence[int], start: Tensor | None) -> None:
        """Raise a `UserError` for channels that there are not and a start of another shape."""
        count = self.network.reach.shapes[self.layer][0] if self.directions is None else len(self.directions)
        check_channels(channels, start, layer=self.layer, count=count, parameterisation=self.parameterisation)

    def together(self, pictures: int) -> int:
        """Return how many of so many pictures ascend together."""
        return micro_batch_size(self.network.reach, self.recipe, self.network.device, pictures)

    def make(
        self,
        channels: Sequence[int],
        faces: Sequence[int],
        *,
        count: int,
        seed: int,
        start: Tensor | None = None,
        stepped: Callable[[int], None] = lambda _step: None,
    ) -> Synthesis:
        """Make one micro-batch, filled up to `count` pictures, and return those that were asked for."""
        fill = max(0, count - len(channels))
        places = [*range(len(channels)), *[len(channels) - 1] * fill]
        own = [channels[place] for place in places]
        named = [(channels[place], faces[place]) for place in places]
        generators = self._generators(named, seed)
        parameters, curve = optimize(
            self.network,
            self.objective(own),
            self.parameterisation,
            self._noise(generators) if start is None else start[places].to(self.network.device),
            generators,
            warm=start is not None,
            stepped=stepped,
        )
        images = self.parameterisation.images(parameters)
        responses = self._responses(images)
        index = torch.arange(len(own)), torch.tensor(own)
        activation = responses[index]
        made = Synthesis(
            images=(images if self.recipe.bounded else shown(images)).cpu(),
            parameters=parameters.cpu(),
            curve=curve.cpu(),
            activation=activation,
            rank=ranks(responses, own, self.known),
            rose=(curve[-1] > curve[0]).cpu() if self.recipe.descends else self._above(named, seed, activation),
            responses=responses,
        )
        return made.at(range(len(channels))) if fill else made

    def _above(self, named: Sequence[tuple[int, int]], seed: int, activation: Tensor) -> Tensor:
        """Return which channels are excited more than by the noise a cold ascent starts from."""
        own = [channel for channel, _ in named]
        if self.known is not None and bool((activation > self.known.largest[own]).all()):
            return torch.ones(len(own), dtype=torch.bool)  # more than by any real image: noise need not be looked at
        before = self._responses(self.parameterisation.images(self._noise(self._generators(named, seed))))
        return activation > before[torch.arange(len(own)), torch.tensor(own)]

    def _generators(self, named: Sequence[tuple[int, int]], seed: int) -> list[torch.Generator]:
        """Return what the noise of pictures `(channel, face)`, then their shifts and turns, are drawn from."""
        digests = (hashlib.sha256(f"{self.layer} {c} {face} {seed}".encode()).digest() for c, face in named)
        return [torch.Generator().manual_seed(int.from_bytes(digest[:7], "little")) for digest in digests]

    def _noise(self, generators: Sequence[torch.Generator]) -> Tensor:
        return self.parameterisation.draw(generators).to(self.network.device)

    def _responses(self, images: Tensor) -> Tensor:
        output = self.network(images)[self.layer]
        return (mean_response(output) if self.directions is None else mean_along(output, self.directions)).cpu()
