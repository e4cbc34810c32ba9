"""The objectives that recipes call by name."""

from collections.abc import Sequence

import torch
from torch import Tensor

from filterscope.analysis.synthesis.network import TruncatedNetwork
from filterscope.analysis.synthesis.objectives import (
    Channel,
    Direction,
    Diversity,
    Logit,
    Maker,
    Neuron,
    Objective,
    Specific,
    Sum,
    mean_response,
)
from filterscope.analysis.synthesis.parameterization import Parameterization
from filterscope.analysis.synthesis.recipe import Recipe
from filterscope.analysis.synthesis.trust import LayerStatistics


def named(
    recipe: Recipe,
    layer: str,
    known: LayerStatistics | None,
    network: TruncatedNetwork,
    directions: Tensor | None = None,
) -> Maker:
    """Return what makes the recipe's objective of a layer's channels, or of `directions` `(D, K)` in their space.

    Where nothing is `known` of real images, the specific objective goes by noise with their spectrum. Directions have
    no rivals: all objectives but diversity are the mean along them.
    """
    if "specific" in recipe.weights and known is None and directions is None:
        noise = _natural_noise(network.network.in_channels, recipe.size).to(network.device)
        known = LayerStatistics.of_responses(
            torch.cat([mean_response(network(part)[layer]).cpu() for part in torch.split(noise, 8)])
        )

    def make(channels: Sequence[int]) -> Objective:
        terms = [
            (weight, Direction(layer=layer, directions=directions[list(channels)]))
            if directions is not None and name != "diversity"
            else (weight, _term(name, layer, tuple(channels), recipe, known))
            for name, weight in recipe.weights.items()
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
    parameterisation = Parameterization(recipe=Recipe(size=size), channels=channels)
    return parameterisation.images(60 * parameterisation.draw([torch.Generator().manual_seed(i) for i in range(64)]))
