"""Objectives: one score per picture, computed from a layer's output, which the optimization maximizes.

An objective is one registered function from a `LayerResponse` to scores `(N,)`; `objective` makes it composable.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from filterscope.analysis.synthesis.trust import LayerStatistics, as_float, mean_along, mean_response
from filterscope.registry import find, register

ObjectiveFunction = Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True)
class LayerResponse:
    """What an objective is computed from: the output of one layer for a micro-batch of N pictures.

    Attributes:
        output: `(N, K, h, w)`, or `(N, K)` of a Linear; bfloat16 where the network runs in it.
        channels: `(N,)`, the channel that each picture visualizes.
        slope: the slope of ReLUs for negative values: positive during the leaky warm-up, 0 afterwards.
        dead_unit_weight: the weight of `dead_unit_term`.
        measure: returns the layer's statistics on real images, or on noise with a natural spectrum where there are
            none.
        imitate: returns the z-scores of the layer's channels for the real images that activate each picture's own
            channel most, `(N, K)`.
        visualized: whether this is the layer whose channels the pictures visualize.
    """

    output: Tensor
    channels: Tensor
    slope: float = 0.0
    dead_unit_weight: float = 0.0
    measure: Callable[[], LayerStatistics]
    imitate: Callable[[], Tensor]
    visualized: bool = True

    def own(self, values: Tensor) -> Tensor:
        """Return each picture's own channel of `(N, K, …)` in at least float32, `(N, …)`."""
        return as_float(values[torch.arange(len(values), device=values.device), self.channels])

    def own_mean(self) -> Tensor:
        """Return the spatial mean of each picture's own rectified map, `(N,)`; of a Linear the unit's value."""
        return mean_response(self.own(self.output)[:, None], self.slope)[:, 0]

    def dead_unit_term(self) -> Tensor | float:
        """Return the weighted largest value of each own map that is nowhere positive, `(N,)`, and 0 for other maps.

        A rectified mean has no gradient where the whole map is negative; this term raises the position that is
        closest to 0.
        """
        own = self.own(self.output)
        if not self.dead_unit_weight or own.dim() != 3:
            return 0.0
        return self.dead_unit_weight * own.flatten(1).amax(dim=1).clamp_max(0.0)


@dataclass(frozen=True, kw_only=True)
class Term:
    """A function of one layer's response: `layer` and `channel` None are those that a picture visualizes."""

    function: ObjectiveFunction
    layer: str | None = None
    channel: int | None = None


Operator = Callable[["Objective", "Objective | float"], "Objective"]


def _both_ways(operate: Callable[[Any, Any], Any]) -> tuple[Operator, Operator]:
    """Return the methods for an operator with an objective at its left and at its right."""
    return lambda own, other: _join(operate, own, other), lambda own, other: _join(operate, other, own)


@dataclass(frozen=True, kw_only=True)
class Objective:
    """An arithmetic expression of functions of layers' responses: `2 * a - b / 3`, `sum([a, b])`, `(1 + a) ** 2`.

    Attributes:
        terms: the functions.
        combine: returns the score from the scores of the terms, which are its arguments.
    """

    terms: tuple[Term, ...]
    combine: Callable[..., Any]

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that terms name, besides the visualized one."""
        return tuple(dict.fromkeys(term.layer for term in self.terms if term.layer is not None))

    def __call__(
        self,
        outputs: Mapping[str, Tensor],
        layer: str,
        channels: Sequence[int],
        *,
        slope: float = 0.0,
        dead_unit_weight: float = 0.0,
        measure: Callable[[str], LayerStatistics] | None = None,
        imitate: Callable[[str], Tensor] | None = None,
    ) -> Tensor:
        """Return the scores `(N,)` of N pictures.

        Args:
            outputs: each layer's output, `(N, K, …)`.
            layer: the visualized layer.
            channels: the visualized channel of each picture.
            slope: see `LayerResponse`.
            dead_unit_weight: see `LayerResponse`.
            measure: returns a layer's statistics; only objectives that compare channels need it.
            imitate: returns the z-scores of a layer that the pictures should have; only `likeness` needs it.
        """
        scores = []
        for term in self.terms:
            name = term.layer or layer
            own = list(channels) if term.channel is None else [term.channel] * len(channels)
            response = LayerResponse(
                output=outputs[name],
                channels=torch.tensor(own, device=outputs[name].device),
                slope=slope,
                dead_unit_weight=dead_unit_weight,
                measure=partial(measure or _no_statistics, name),
                visualized=name == layer,
                imitate=partial(imitate or _no_statistics, name),
            )
            scores.append(term.function(response))
        score: Tensor = self.combine(*scores)
        return score

    __add__, __radd__ = _both_ways(operator.add)
    __sub__, __rsub__ = _both_ways(operator.sub)
    __mul__, __rmul__ = _both_ways(operator.mul)
    __truediv__, __rtruediv__ = _both_ways(operator.truediv)
    __pow__, __rpow__ = _both_ways(operator.pow)

    def __neg__(self) -> Objective:
        return self * -1.0

    def __pos__(self) -> Objective:
        return self


def _join(operate: Callable[[Any, Any], Any], *operands: Objective | float) -> Objective:
    left, right = (
        each if isinstance(each, Objective) else Objective(terms=(), combine=partial(_same, each)) for each in operands
    )
    combine = partial(_combined, operate, len(left.terms), left.combine, right.combine)
    return Objective(terms=left.terms + right.terms, combine=combine)


def _combined(
    operate: Callable[[Any, Any], Any], count: int, left: Callable[..., Any], right: Callable[..., Any], *scores: Tensor
) -> Any:
    return operate(left(*scores[:count]), right(*scores[count:]))


def _same(score: Any) -> Any:
    return score


def objective(
    function: str | ObjectiveFunction, *, layer: str | None = None, channel: int | None = None, **options: Any
) -> Objective:
    """Return a registered objective, or a function of a `LayerResponse`, as an `Objective`.

    Args:
        function: the function, or the name under which it is registered.
        layer: a name as `Classifier.layers` has it; None: the layer that is visualized.
        channel: one channel for all pictures; None: the channel that each picture visualizes.
        **options: further arguments of the function.

    Raises:
        UserError: no objective is registered under this name.
    """
    found: ObjectiveFunction = find("objective", function) if isinstance(function, str) else function
    return Objective(terms=(Term(function=partial(found, **options), layer=layer, channel=channel),), combine=_same)


def compares_samples(function: ObjectiveFunction) -> ObjectiveFunction:
    """Mark an objective that compares the samples of a channel: all of them are optimized in one micro-batch."""
    function.compares_samples = True  # type: ignore[attr-defined]
    return function


@register("objective")
def channel(response: LayerResponse) -> Tensor:
    """Return the spatial mean of the channel's rectified map, or the value of a Linear's unit."""
    return response.own_mean() + response.dead_unit_term()


@register("objective")
def logit(response: LayerResponse) -> Tensor:
    """Return the spatial mean of the channel's map without a ReLU, or the value of a Linear's unit."""
    own = response.own(response.output)
    return own.flatten(1).mean(dim=1) if own.dim() > 1 else own


@register("objective")
def neuron(response: LayerResponse, *, position: tuple[int, int] | None = None) -> Tensor:
    """Return the rectified value at one `(row, column)` of the channel's map; by default at its centre."""
    own = response.own(response.output)
    if own.dim() == 1:
        return own
    row, column = position or (own.shape[1] // 2, own.shape[2] // 2)
    return F.leaky_relu(own[:, row, column], response.slope)


def direction(response: LayerResponse, *, directions: Tensor) -> Tensor:
    """Return the spatial mean of the output's rectified component along a direction in channel space.

    `directions` is `(K,)`, one for all pictures, or `(D, K)` with one for each channel that is visualized; lengths do
    not matter.
    """
    each = directions.expand(len(response.output), -1) if directions.dim() == 1 else directions[response.channels.cpu()]
    pairs = zip(response.output, each, strict=True)
    return torch.cat([mean_along(output[None], own[None], response.slope)[:, 0] for output, own in pairs])


@register("objective")
def specific(response: LayerResponse, *, margin: float = 0.7, weight: float = 3.0, temperature: float = 0.3) -> Tensor:
    """Return the channel's mean response, penalized where other channels of the layer respond as strongly.

    Every channel's mean is a z-score: in units of its standard deviation on real images, which makes channels
    comparable. The penalty is `weight` times the excess of the soft maximum of all other z-scores (their log-sum-exp
    at `temperature`) over `margin` times the own one, so other channels cost nothing while they stay behind. During
    the leaky warm-up only the own channel counts.
    """
    statistics = response.measure()
    means = mean_response(response.output, response.slope)
    mean, deviation = statistics.mean.to(means), statistics.spread.to(means)
    z = (means - mean) / deviation
    own = response.own(z) + response.dead_unit_term() / deviation[response.channels]
    if z.shape[1] == 1 or response.slope:
        return own
    others = z.scatter(1, response.channels[:, None], -torch.inf) / temperature
    strongest = temperature * torch.logsumexp(others, dim=1)
    return own - weight * F.relu(strongest - margin * own)


@register("objective")
def natural(
    response: LayerResponse, *, least: float = 1.3, weight: float = 10.0, others: float = 3.0, temperature: float = 0.3
) -> Tensor:
    """Return the logarithm of the channel's mean response in units of the largest one to a real image.

    Its unit is the distance from the mean to the largest real response. Below `least` units the score falls linearly,
    `weight` for each, so that no other term of the objective keeps a picture weaker than the best real image. `others`
    is the weight of the excess of the soft maximum of all other channels over the own one, in z-scores relative to that
    of the unit. A recipe with this objective adds the `likeness` of the layer and of layers before it.
    """
    statistics = response.measure().to(response.output.device)
    z = statistics.scores(mean_response(response.output, response.slope))
    spread = statistics.spread
    unit = ((statistics.largest.to(spread) - statistics.mean) / spread).clamp_min(1.0)[response.channels]
    own_z = response.own(z) + response.dead_unit_term() / spread[response.channels]
    own = own_z / unit
    score = (own.clamp_min(least) / least).log() - weight * F.relu(least - own)
    if z.shape[1] == 1 or response.slope:
        return score
    rivals = z.scatter(1, response.channels[:, None], -torch.inf) / temperature
    return score - others * F.relu(temperature * torch.logsumexp(rivals, dim=1) - own_z) / unit


@register("objective")
def likeness(response: LayerResponse, *, largest: float = 50.0) -> Tensor:
    """Return minus the mean distance, in z-scores, between a layer's mean responses and those to real images.

    The real images are those that activate the picture's own channel most. That channel itself does not count.
    Distances beyond `largest` count as `largest`.
    """
    z = response.measure().to(response.output.device).scores(mean_response(response.output, response.slope))
    distance = (z - response.imitate().to(z)).abs().clamp_max(largest)
    if response.visualized:
        distance = distance.scatter(1, response.channels[:, None], 0.0)
    return -distance.mean(dim=1)


@register("objective")
@compares_samples
def diversity(response: LayerResponse) -> Tensor:
    """Return minus the mean cosine similarity of a picture's Gram matrix to those of its channel's other samples.

    It is 0 where a channel has a single sample. The measure is lucid's.
    """
    maps = F.leaky_relu(as_float(response.output), response.slope).flatten(2)
    grams = F.normalize(torch.einsum("ncp,ndp->ncd", maps, maps).flatten(1), dim=1)
    others = (response.channels[:, None] == response.channels[None, :]).fill_diagonal_(False).float()
    return -(others * (grams @ grams.T)).sum(dim=1) / others.sum(dim=1).clamp_min(1.0)


def _no_statistics(layer: str) -> Any:
    raise ValueError(f"this objective needs statistics of {layer}; give `measure` and `imitate`")
