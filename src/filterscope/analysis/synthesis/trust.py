"""Statistics of real images' responses, which show how far to trust a picture and make channels comparable."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from filterscope.analysis.hooks import observing, run_model, tapping
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.layers import convolutions, find_layer

TOP = 9
"""The number of real images that stand for what activates a channel most."""
LEAST_SUPPORT = 0.25
"""Pictures with a lower `SynthesisResult.support` cannot be told from forged ones (`benchmarks/forgeries.py`)."""
_BATCH = 16


def as_float(values: Tensor) -> Tensor:
    """Return bfloat16 and float16 values as float32, others unchanged."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def mean_response(output: Tensor, slope: float = 0.0) -> Tensor:
    """Return the spatial mean of a layer's rectified maps, `(N, K, h, w)` → `(N, K)`; a Linear's `(N, K)` unchanged.

    The mean of maps that are not rectified would be little more than the mean colour of the image in early layers.

    Args:
        output: of a layer; bfloat16 and float16 become float32.
        slope: factor for negative values.
    """
    if output.dim() == 2:
        return as_float(output)
    rectified = F.leaky_relu(output, slope) if slope else F.relu(output)
    return as_float(rectified.flatten(2)).mean(dim=2)


def mean_along(output: Tensor, directions: Tensor, slope: float = 0.0) -> Tensor:
    """Return the mean rectified component of maps along directions `(D, K)` in channel space, `(N, D)`.

    A Linear's component is not rectified; the length of a direction does not matter.
    """
    unit = F.normalize(directions.to(output.device).float(), dim=1)
    return mean_response(torch.einsum("nk...,dk->nd...", as_float(output), unit), slope)


@dataclass(frozen=True, kw_only=True)
class LayerStatistics:
    """Statistics of a layer's mean responses (see `mean_response`) to real images.

    Attributes:
        largest: the largest response of each channel, `(K,)`.
        mean: `(K,)`.
        std: standard deviation, `(K,)`.
        sample: the responses to all images, or to evenly spaced ones of many, `(n, K)`. Its rows are the same images
            for all layers that were measured together.
        count: number of images.
    """

    largest: Tensor
    mean: Tensor
    std: Tensor
    sample: Tensor
    count: int

    @classmethod
    def of_responses(cls, responses: Tensor) -> "LayerStatistics":
        """Return the statistics of the responses `(images, K)`."""
        return cls(
            largest=responses.max(dim=0).values,
            mean=responses.mean(dim=0),
            std=responses.std(dim=0, correction=0),
            sample=responses,
            count=len(responses),
        )

    def to(self, device: torch.device) -> "LayerStatistics":
        """Return the statistics with mean and standard deviation on a device."""
        return replace(self, mean=self.mean.to(device), std=self.std.to(device))

    @property
    def spread(self) -> Tensor:
        """The standard deviation, at least a tenth of the layer's median one, so that it can divide a dead channel."""
        return self.std.clamp_min(0.1 * float(self.std.median())).clamp_min(1e-6)

    def scores(self, responses: Tensor) -> Tensor:
        """Return responses `(N, K)` as z-scores."""
        return (responses - self.mean) / self.spread

    def percentile(self, values: Tensor, channels: Sequence[int]) -> Tensor:
        """Return the percentage of real images whose response of `channels[i]` is below `values[i]`, 0 to 100."""
        return 100 * (self.sample[:, list(channels)] < values).float().mean(dim=0)

    def multiple(self, values: Tensor, channels: Sequence[int]) -> Tensor:
        """Return `values[i]` divided by the largest real response of `channels[i]`; inf where that is 0."""
        largest = self.largest[list(channels)]
        return torch.where(largest > 0, values / largest.clamp_min(1e-12), torch.inf)


@dataclass(frozen=True, kw_only=True)
class ActivationStatistics:
    """The statistics of several layers, by name."""

    layers: Mapping[str, LayerStatistics]

    def of(self, layer: str) -> LayerStatistics:
        """Return the statistics of a layer.

        Raises:
            UserError: it was not measured.
        """
        if layer not in self.layers:
            raise UserError(f"no statistics of {layer!r} were measured, only of {', '.join(self.layers)}")
        return self.layers[layer]

    def top_scores(self, layer: str, channels: Sequence[int], of: str) -> Tensor | None:
        """Return how a layer responds to the real images that activate each channel of another layer most.

        Args:
            layer: of the channels.
            channels: indices.
            of: the layer whose responses are returned.

        Returns:
            The mean z-scores `(len(channels), K)` of the `TOP` images; None if the two layers were not measured
            together.
        """
        if not {layer, of} <= self.layers.keys():
            return None
        own, other = self.layers[layer], self.layers[of]
        if len(own.sample) != len(other.sample) or own.count != other.count:
            return None
        top = own.sample[:, list(channels)].topk(min(TOP, len(own.sample)), dim=0).indices
        return other.scores(other.sample[top]).mean(dim=0)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return dicts of tensors and numbers, for a checkpoint; the sample in half precision."""
        largest = torch.finfo(torch.float16).max
        return {
            name: vars(layer) | {"sample": layer.sample.clamp(-largest, largest).half()}
            for name, layer in self.layers.items()
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Mapping[str, Any]]) -> "ActivationStatistics":
        """Return the statistics that `to_dict` turned into dicts."""
        return cls(
            layers={
                name: LayerStatistics(**{**layer, "sample": layer["sample"].float()}) for name, layer in stored.items()
            }
        )


def measure_statistics(
    classifier: Classifier,
    images: Tensor | Iterable[Tensor],
    layers: Sequence[str],
    *,
    directions: Tensor | None = None,
) -> ActivationStatistics:
    """Measure the statistics of layers' responses to real images.

    Args:
        classifier: is left as it was.
        images: `(N, C, H, W)` in [0, 1], or batches of them.
        layers: names as `Classifier.layers` has them.
        directions: `(D, K)` in the layers' channel space, to be measured instead of the channels.

    Raises:
        UserError: there are no images, or a layer is unknown.
    """
    batches = torch.split(images, _BATCH) if isinstance(images, Tensor) else images
    responses: dict[str, list[Tensor]] = {name: [] for name in layers}
    with observing(classifier), torch.no_grad(), tapping(classifier, layers) as outputs:
        for batch in batches:
            if len(batch):
                run_model(classifier, batch)
                for name in layers:
                    output = outputs[name]
                    means = mean_response(output) if directions is None else mean_along(output, directions)
                    responses[name].append(means.cpu())
    if not all(responses.values()):
        raise UserError("statistics of real images need at least one image")
    return ActivationStatistics(
        layers={name: LayerStatistics.of_responses(torch.cat(parts)) for name, parts in responses.items()}
    )


def ranks(responses: Tensor, channels: Sequence[int], statistics: LayerStatistics | None = None) -> Tensor:
    """Return for each picture the number of channels that it activates more than its own, `(N, K)` → `(N,)`; 0 is best.

    Channels are compared by z-score where the layer's statistics are known, otherwise by activation.
    """
    scores = responses if statistics is None else statistics.scores(responses)
    return (scores > own_responses(scores, channels)[:, None]).sum(dim=1)


def own_responses(responses: Tensor, channels: Sequence[int]) -> Tensor:
    """Return each picture's response of its own channel, `(N, K)` → `(N,)`."""
    return responses[torch.arange(len(channels)), torch.tensor(list(channels))]


def reference_layers(classifier: Classifier, layer: str, most: int = 5) -> list[str]:
    """Return the layers in which a picture is compared with real images: some convolutions, then the layer itself.

    The convolutions are the last one before the layer and others evenly spaced before it, at most `most` layers in all.
    """
    name = find_layer(classifier.layers, layer).name
    order = list(classifier.layers)
    before = [each for each in convolutions(classifier.layers) if order.index(each) < order.index(name)]
    count = min(len(before), most - 1)
    return [*(before[round((i + 1) * len(before) / count) - 1] for i in range(count)), name]
