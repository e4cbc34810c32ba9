"""What a picture shall excite: one score per picture, to be made large."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


def mean_response(output: Tensor, slope: float = 0.0) -> Tensor:
    """Return the spatial mean of the rectified maps, `(N, K, h, w)` → `(N, K)`; a Linear's `(N, K)` stays as it is.

    `slope` is what is left of negative values. The mean before rectifying would see no more of an early layer than
    the mean colour of the image.
    """
    if output.dim() == 2:
        return _full(output)
    rectified = F.leaky_relu(output, slope) if slope else F.relu(output)
    return _full(rectified.flatten(2)).mean(dim=2)


def mean_along(output: Tensor, directions: Tensor, slope: float = 0.0) -> Tensor:
    """Return the rectified mean of the maps' components along directions `(D, K)` in channel space, `(N, D)`.

    A Linear's component stays as it is; the length of a direction does not matter.
    """
    along = F.normalize(directions.to(output.device).float(), dim=1)
    return mean_response(torch.einsum("nk...,dk->nd...", _full(output), along), slope)


class Objective(ABC):
    """A score per picture from what layers put out; objectives add, subtract and scale."""

    @property
    @abstractmethod
    def layers(self) -> tuple[str, ...]:
        """The layers that are looked at."""

    @property
    def own(self) -> Tensor | None:
        """The channels `(N,)`, where each picture needs no other than its own."""
        return None

    @abstractmethod
    def __call__(self, outputs: Mapping[str, Tensor], slope: float = 0.0) -> Tensor:
        """Return the scores `(N,)`; `slope` is what is left of negative activations."""

    def __add__(self, other: Objective) -> Sum:
        return Sum(terms=((1.0, self), (1.0, other)))

    def __sub__(self, other: Objective) -> Sum:
        return Sum(terms=((1.0, self), (-1.0, other)))

    def __mul__(self, weight: float) -> Sum:
        return Sum(terms=((weight, self),))

    __rmul__ = __mul__

    def __neg__(self) -> Sum:
        return Sum(terms=((-1.0, self),))


class Maker(Protocol):
    """Makes the objective of one micro-batch: picture `i` is for channel `channels[i]`."""

    def __call__(self, channels: Sequence[int]) -> Objective:
        """Return the objective."""
        ...


@dataclass(frozen=True, kw_only=True)
class Sum(Objective):
    """A weighted sum of objectives, of the same or of several layers."""

    terms: tuple[tuple[float, Objective], ...]

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers of all terms."""
        return tuple(dict.fromkeys(layer for _, term in self.terms for layer in term.layers))

    @property
    def own(self) -> Tensor | None:
        """The channels `(N,)`, where all terms need the same ones and no other."""
        first, *others = [term.own for _, term in self.terms]
        same = first is not None and all(other is not None and torch.equal(first, other) for other in others)
        return first if same else None

    def __call__(self, outputs: Mapping[str, Tensor], slope: float = 0.0) -> Tensor:
        """Return the weighted sum of the terms' scores."""
        return torch.stack([weight * term(outputs, slope) for weight, term in self.terms]).sum(dim=0)


@dataclass(frozen=True, kw_only=True)
class _Layered(Objective):
    layer: str
    channels: tuple[int, ...]

    @property
    def layers(self) -> tuple[str, ...]:
        """The one layer that is looked at."""
        return (self.layer,)

    def mine(self, values: Tensor) -> Tensor:
        """Return each picture's own channel of `(N, K, …)`, or of `(N, 1, …)` where it was computed alone."""
        if values.shape[1] == 1:
            return values[:, 0]
        index = torch.tensor(self.channels, device=values.device)
        return values[torch.arange(len(index), device=values.device), index]

    def revival(self, maps: Tensor, leak: float) -> Tensor | float:
        """Return `leak` times the largest value of each own map `(N, h, w)` that is nowhere positive, else 0.

        A rectified mean has no gradient there; this draws the place up that lacks least.
        """
        return leak * _full(maps.flatten(1).amax(dim=1)).clamp_max(0.0) if leak and maps.dim() == 3 else 0.0


class _Own(_Layered):
    @property
    def own(self) -> Tensor:
        """The channels `(N,)`: no picture needs any other than its own."""
        return torch.tensor(self.channels)


@dataclass(frozen=True, kw_only=True)
class Channel(_Own):
    """The spatial mean of the channel's rectified map (for a Linear: the unit's value); `leak` revives a dead map."""

    leak: float = 0.0

    def __call__(self, outputs: Mapping[str, Tensor], slope: float = 0.0) -> Tensor:
        """Return each picture's own mean."""
        maps = self.mine(outputs[self.layer])
        return mean_response(maps.unsqueeze(1), slope)[:, 0] + self.revival(maps, self.leak)


class Logit(_Own):
    """The unit's value as it is, of a map its mean: the plain logit of a class."""

    def __call__(self, outputs: Mapping[str, Tensor], slope: float = 0.0) -> Tensor:  # noqa: ARG002
        """Return each picture's own value."""
        own = _full(self.mine(outputs[self.layer]))
        return own.flatten(1).mean(dim=1) if own.dim() > 1 else own


@dataclass(frozen=True, kw_only=True)
class Neuron(_Own):
    """One position of the channel's map: `(row, column)`, the middle where nothing is said."""

    position: tuple[int, int] | None = None

    def __call__(self, outputs: Mapping[str, Tensor], slope: float = 0.0) -> Tensor:
        """Return each picture's own neuron, rectified."""
        own = _full(self.mine(outputs[self.layer]))
        if own.dim() == 3:
            row, column = self.position or (own.shape[1] // 2, own.shape[2] // 2)
            own = own[:, row, column]
            return F.leaky_relu(own, slope)
        return own


@dataclass(frozen=True, kw_only=True)
class Direction(Objective):
    """The spatial mean of the maps' component along a direction in channel space.

    `directions` is `(N, K)` or `(K,)`, one for all pictures; its length does not matter.
    """

    layer: str
    directions: Tensor

    @property
    def layers(self) -> tuple[str, ...]:
        """The one layer that is looked at."""
        return (self.layer,)

    def __call__(self, outputs: Mapping[str, Tensor], slope: float = 0.0) -> Tensor:
        """Return each picture's mean along its direction, rectified position by position."""
        output = outputs[self.layer]
        own = self.directions.expand(len(output), -1).unbind()
        return torch.cat([mean_along(output[i : i + 1], d[None], slope)[:, 0] for i, d in enumerate(own)])


@dataclass(frozen=True, kw_only=True)
class Specific(_Layered):
    """The channel's mean held above that of all other channels of its layer, each in units of its own spread.

    Every channel's rectified mean is z-scored by its mean and standard deviation on real images, `(K,)` each. The score
    is the own z-score, less `weight` times what the soft maximum of all others (their log-sum-exp at `temperature`)
    exceeds `margin` of it by: rivals cost nothing as long as they stay behind. In the leaky steps only the own channel
    counts; `leak` revives a dead map.
    """

    mean: Tensor
    std: Tensor
    margin: float = 0.7
    weight: float = 3.0
    temperature: float = 0.3
    leak: float = 0.0

    def __call__(self, outputs: Mapping[str, Tensor], slope: float = 0.0) -> Tensor:
        """Return each picture's own z-score less what its rivals come too near."""
        values = mean_response(outputs[self.layer], slope)
        z = (values - self.mean.to(values)) / self.std.to(values)
        index = torch.tensor(self.channels, device=z.device)[:, None]
        spread = self.mine(self.std.to(z).expand_as(z))
        own = self.mine(z) + self.revival(self.mine(outputs[self.layer]), self.leak) / spread
        if z.shape[1] == 1 or slope:
            return own
        others = z.scatter(1, index, -torch.inf) / self.temperature
        rivals = self.temperature * torch.logsumexp(others, dim=1)
        return own - self.weight * F.relu(rivals - self.margin * own)


class Diversity(_Layered):
    """How unlike each other the pictures of one channel are: minus the mean cosine of their Gram matrices (lucid)."""

    def __call__(self, outputs: Mapping[str, Tensor], slope: float = 0.0) -> Tensor:
        """Return for each picture minus its mean likeness to the others of its channel, 0 where it is the only one."""
        maps = F.leaky_relu(_full(outputs[self.layer]), slope).flatten(2)
        grams = F.normalize(torch.einsum("ncp,ndp->ncd", maps, maps).flatten(1), dim=1)
        index = torch.tensor(self.channels, device=grams.device)
        others = (index[:, None] == index[None, :]).fill_diagonal_(False).float()
        return -(others * (grams @ grams.T)).sum(dim=1) / others.sum(dim=1).clamp_min(1.0)


def _full(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
