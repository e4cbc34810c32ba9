"""What pictures are to be made of one layer's channels, in which micro-batches, and what the result is."""

from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from filterscope.analysis.hooks import device_of
from filterscope.analysis.synthesis.network import ForwardProfile
from filterscope.analysis.synthesis.objectives import Objective, direction, objective
from filterscope.analysis.synthesis.optimize import uses_bf16
from filterscope.analysis.synthesis.parameterization import Parameterization
from filterscope.analysis.synthesis.recipe import Recipe, objective_compares
from filterscope.analysis.synthesis.trust import ActivationStatistics, LayerStatistics, reference_layers
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.layers import find_layer

_LARGEST_BATCH = 16
_CACHE_ELEMENTS = 5 * 2**19  # of one activation of the whole micro-batch; beyond, a CPU's convolutions wait for memory


@dataclass(frozen=True, kw_only=True)
class SynthesisResult:
    """N pictures and the measures of how far to trust them; all tensors are on the CPU.

    Attributes:
        images: `(N, C, size, size)` in [0, 1].
        parameters: can be given as `start` of a later optimization, `(N, …)`.
        curve: the objective in each step, under the transforms, `(steps, N)`.
        activation: mean response of the own channel to the final picture without transforms, `(N,)`.
        rank: number of channels of the layer that the picture activates more than its own, `(N,)`; 0 is best.
        converged: whether the activation ended above that of the noise from which an optimization starts, or above
            those of all real images, `(N,)`. For a recipe that minimizes: whether the objective ended above its start.
        responses: mean responses of all channels of the layer, `(N, K)`.
        support: share of the activation that remains if every channel of the convolution before the layer is scaled
            down to its largest mean response to a real image, `(N,)`; nan if there is none or without real images.
        importance: how much each place adds to the activation, 0 to 1, `(N, size, size)`, float16: the opacity that
            `recipe.fade` gives the picture.
    """

    images: Tensor
    parameters: Tensor
    curve: Tensor
    activation: Tensor
    rank: Tensor
    converged: Tensor
    responses: Tensor
    support: Tensor
    importance: Tensor

    def select(self, indices: Sequence[int]) -> "SynthesisResult":
        """Return some of the pictures."""
        chosen = list(indices)
        return SynthesisResult(**{n: v[:, chosen] if n == "curve" else v[chosen] for n, v in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class Job:
    """Pictures to be made of one layer.

    Attributes:
        layer: a name as `Classifier.layers` has it; a convolution's name means its output before the ReLU.
        channels: one picture each; a channel that is listed several times gets several samples, which start from
            different noise.
        recipe: how to make the pictures.
        seed: together with layer, channel and sample it determines all random numbers of a picture.
        start: `SynthesisResult.parameters` of earlier pictures, `(N, …)`, or `start_from(images, recipe)`; None: noise.
        statistics: of real images, of the layer and of `reference_layers`; None: `natural` becomes `channel`,
            `specific` uses statistics of noise with a natural spectrum, and channels are ranked by activation.
        directions: `(D, K)` in channel space, to be visualized instead of channels; `channels` and `statistics` then
            refer to them.
        objective: an objective instead of the recipe's.
        micro_batch: number of pictures that are optimized together; None: `micro_batch_size`. The same number gives a
            channel's picture the same bits, whatever the other channels are. An objective that compares samples
            (`diversity`) always gets those of one channel together.
    """

    layer: str
    channels: tuple[int, ...]
    recipe: Recipe
    seed: int = 0
    start: Tensor | None = None
    statistics: ActivationStatistics | None = None
    directions: Tensor | None = None
    objective: Objective | None = None
    micro_batch: int | None = None

    @cached_property
    def pairs(self) -> list[tuple[int, int]]:
        """The channel of each picture and its number among the samples of that channel, from 0."""
        return [(channel, self.channels[:i].count(channel)) for i, channel in enumerate(self.channels)]

    @property
    def known(self) -> LayerStatistics | None:
        """The layer's own statistics."""
        return None if self.statistics is None else self.statistics.layers.get(self.layer)

    @cached_property
    def channel_set(self) -> list[int]:
        """The different channels, each once."""
        return list(dict.fromkeys(self.channels))

    def compared_layers(self, classifier: Classifier) -> list[str]:
        """Return the reference layers that were measured together with this one, itself last."""
        if self.statistics is None or self.directions is not None:
            return []
        names = reference_layers(classifier, self.layer)
        return [name for name in names if self.statistics.top_scores(self.layer, [0], name) is not None]

    def total_objective(self, classifier: Classifier) -> Objective:
        """Return the objective, or that of the recipe.

        Directions replace objectives of single channels by the mean along them. `natural` adds the likeness of the
        compared layers; without statistics it is replaced by `channel`.
        """
        if self.objective is not None:
            return self.objective
        terms = []
        for name, weight in self.recipe.weights.items():
            if self.directions is not None and not objective_compares(name):
                terms.append(weight * objective(direction, directions=self.directions))
            elif name == "natural" and self.known is None:
                terms.append(weight * objective("channel"))
            else:
                terms.append(weight * objective(name))
                layers = self.compared_layers(classifier) if name == "natural" else []
                share = weight * self.recipe.likeness / max(1, len(layers))
                terms += [share * objective("likeness", layer=layer) for layer in layers]
        total: Objective = sum(terms[1:], start=terms[0])
        return total

    def layers(self, classifier: Classifier) -> tuple[str, ...]:
        """Return the layers that are computed: the visualized one, those of the objective, and the one before it."""
        own = find_layer(classifier.layers, self.layer).name
        return tuple(dict.fromkeys((own, *self.total_objective(classifier).layers, *self.compared_layers(classifier))))

    def batch_size(self, classifier: Classifier, profile: ForwardProfile) -> int:
        """Return the number of pictures in a micro-batch.

        Raises:
            UserError: a channel does not exist, `start` has another shape, or there is no memory for a picture.
        """
        ((layer, shape),) = list(profile.shapes.items())[:1]
        count = shape[0] if self.directions is None else len(self.directions)
        wrong = [channel for channel in self.channels if not 0 <= channel < count]
        if wrong:
            raise UserError(f"channel {wrong[0]} of {layer} does not exist; it has 0 to {count - 1}")
        if not self.channels:
            raise UserError(f"no channels of {layer} to synthesize; it has 0 to {count - 1}")
        expected = Parameterization(recipe=self.recipe, channels=classifier.in_channels).shape
        if self.start is not None and tuple(self.start.shape) != (len(self.channels), *expected):
            raise UserError(
                f"a start of shape {tuple(self.start.shape)} does not fit; this recipe's has "
                f"{(len(self.channels), *expected)}"
            )
        device = device_of(classifier)
        return self.micro_batch or micro_batch_size(profile, self.recipe, device, len(self.channels))

    def batches(self, count: int, finished: Container[int] = ()) -> list[list[int]]:
        """Return the indices of unfinished pictures in each micro-batch of at most `count` pictures."""
        left = [i for i in range(len(self.channels)) if i not in finished]
        if self.recipe.compares_samples:
            channels = dict.fromkeys(self.channels[i] for i in left)
            return [[i for i in left if self.channels[i] == channel] for channel in channels]
        return [left[i : i + count] for i in range(0, len(left), count)]


def merge_results(parts: Sequence[tuple[Sequence[int], SynthesisResult]]) -> SynthesisResult:
    """Return all parts as one result, each picture at its index; the indices are 0 to one less than all pictures."""
    order = [index for indices, _ in parts for index in indices]
    names = SynthesisResult.__dataclass_fields__
    joined = SynthesisResult(
        **{n: torch.cat([getattr(part, n) for _, part in parts], dim=int(n == "curve")) for n in names}
    )
    return joined.select(sorted(range(len(order)), key=order.__getitem__))


def micro_batch_size(profile: ForwardProfile, recipe: Recipe, device: torch.device, pictures: int) -> int:
    """Return how many pictures are optimized together: limited by `recipe.memory`, and on a CPU by its cache.

    Args:
        profile: of one picture on the way to the layer.
        recipe: with memory limit and precision.
        device: of the network.
        pictures: number of all pictures; they are spread evenly over as few micro-batches as possible.

    Raises:
        UserError: a single picture exceeds the memory limit.
    """
    width = 2 if uses_bf16(recipe, device) else 4
    needed = 2 * width * profile.elements  # every activation and its gradient
    fitting = int(recipe.memory * 2**30 / needed)
    if fitting < 1:
        raise UserError(
            f"one picture needs {needed / 2**30:.2g} GiB for activations, recipe.memory is {recipe.memory:g}; "
            "choose a smaller recipe.size or more memory"
        )
    cached = _LARGEST_BATCH if device.type != "cpu" else max(1, _CACHE_ELEMENTS // profile.largest)
    most = max(1, min(fitting, cached, _LARGEST_BATCH, pictures))
    return -(-pictures // -(-pictures // most))
