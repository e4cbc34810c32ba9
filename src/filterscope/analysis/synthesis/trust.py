"""How far to trust a picture: its activation beside those of real images, and its channel beside the layer's others."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from filterscope.analysis.hooks import observing, run_model, tapping
from filterscope.analysis.synthesis.objectives import mean_along, mean_response
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier

LEVELS = torch.linspace(0, 1, 101)
_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class LayerStatistics:
    """What real images make of a layer's channels: their rectified mean over the map (for a Linear, the value).

    `largest mean std` are `(K,)`; `quantiles` is `(101, K)`, at 0, 1, … 100 %; `count` images were seen.
    """

    largest: Tensor
    mean: Tensor
    std: Tensor
    quantiles: Tensor
    count: int

    @classmethod
    def of_responses(cls, responses: Tensor) -> "LayerStatistics":
        """Return the statistics of the responses `(images, K)`."""
        return cls(
            largest=responses.max(dim=0).values,
            mean=responses.mean(dim=0),
            std=responses.std(dim=0, correction=0),
            quantiles=quantiles(responses),
            count=len(responses),
        )

    @property
    def spread(self) -> Tensor:
        """The standard deviation, held above a tenth of the layer's median one, so that a dead channel divides."""
        return self.std.clamp_min(0.1 * float(self.std.median())).clamp_min(1e-6)

    def scores(self, responses: Tensor) -> Tensor:
        """Return responses `(N, K)` as z-scores."""
        return (responses - self.mean) / self.spread

    def percentile(self, values: Tensor, channels: Sequence[int]) -> Tensor:
        """Return how many percent of the real images excite `channels[i]` less than `values[i]`, 0 to 100."""
        below = (self.quantiles[:, list(channels)] < values).sum(dim=0)
        return (below - 1).clamp(0, 100).float()

    def multiple(self, values: Tensor, channels: Sequence[int]) -> Tensor:
        """Return `values[i]` in units of the largest real activation of `channels[i]`; inf where that is 0."""
        largest = self.largest[list(channels)]
        return torch.where(largest > 0, values / largest.clamp_min(1e-12), torch.inf)


@dataclass(frozen=True, kw_only=True)
class ActivationStatistics:
    """What real images make of several layers, by the layers' names."""

    layers: Mapping[str, LayerStatistics]

    def of(self, layer: str) -> LayerStatistics:
        """Return the statistics of a layer; a `UserError` where it was not measured."""
        if layer not in self.layers:
            raise UserError(f"no statistics of {layer!r} were measured, only of {', '.join(self.layers)}")
        return self.layers[layer]

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return plain dicts of tensors and numbers, for a checkpoint."""
        return {name: dict(vars(layer)) for name, layer in self.layers.items()}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Mapping[str, Any]]) -> "ActivationStatistics":
        """Return what `to_dict` made plain."""
        return cls(layers={name: LayerStatistics(**layer) for name, layer in stored.items()})


def quantiles(responses: Tensor) -> Tensor:
    """Return the quantiles at `LEVELS` of the responses `(images, K)`, `(101, K)`, as `torch.quantile`, but faster.

    NumPy sorts with the processor's vectors, each channel by itself.
    """
    ordered = torch.from_numpy(np.sort(responses.T.contiguous().cpu().numpy(), axis=1))
    place = LEVELS.double() * (len(responses) - 1)
    below, above = place.floor().long(), place.ceil().long()
    read = torch.lerp(ordered[:, below], ordered[:, above], (place - below).to(ordered.dtype))
    return read.masked_fill_(ordered[:, -1:].isnan(), torch.nan).T.contiguous()  # what is no number is sorted last


def measure_statistics(
    classifier: Classifier,
    images: Tensor | Iterable[Tensor],
    layers: Sequence[str],
    *,
    directions: Tensor | None = None,
) -> ActivationStatistics:
    """Measure what real images make of the named layers.

    Args:
        classifier: is left as it was.
        images: `(N, C, H, W)` in [0, 1], or batches of them.
        layers: names as `Classifier.layers` knows them.
        directions: `(D, K)` in the layers' channel space, which statistics are wanted of instead of channels.

    Raises:
        UserError: there are no images, or an unknown layer.
    """
    batches = torch.split(images, _BATCH) if isinstance(images, Tensor) else images
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}
    with observing(classifier), torch.no_grad(), tapping(classifier, layers) as outputs:
        for batch in batches:
            if len(batch):
                run_model(classifier, batch)
                for name in layers:
                    output = outputs[name]
                    means = mean_response(output) if directions is None else mean_along(output, directions)
                    seen[name].append(means.cpu())
    if not all(seen.values()):
        raise UserError("statistics of real images need at least one image")
    return ActivationStatistics(
        layers={name: LayerStatistics.of_responses(torch.cat(parts)) for name, parts in seen.items()}
    )


def ranks(responses: Tensor, channels: Sequence[int], statistics: LayerStatistics | None = None) -> Tensor:
    """Return for each picture how many channels it excites more than its own, `(N, K)` → `(N,)`; 0 is best.

    Channels are compared by z-score where the layer's statistics are known, else by their activation.
    """
    scores = responses if statistics is None else statistics.scores(responses)
    own = scores[torch.arange(len(scores)), torch.tensor(list(channels))]
    return (scores > own[:, None]).sum(dim=1)
