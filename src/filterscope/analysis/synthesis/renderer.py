"""Make the pictures of a job, in micro-batches, with the measures of how far to trust them."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from filterscope.analysis.hooks import device_of
from filterscope.analysis.synthesis.jobs import Job, SynthesisResult, merge_results
from filterscope.analysis.synthesis.network import ForwardProfile, TruncatedNetwork
from filterscope.analysis.synthesis.optimize import optimize, uses_bf16
from filterscope.analysis.synthesis.parameterization import Parameterization, stretch_contrast
from filterscope.analysis.synthesis.recipe import Recipe
from filterscope.analysis.synthesis.trust import LayerStatistics, mean_along, mean_response, own_responses, ranks
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.layers import find_layer

FASTER = 3.0  # times the learning rate, for pictures that are weaker than the best real image
AGAIN = 4  # of these pictures are optimized together


class LayerRenderer:
    """Makes the pictures of a job, to be used inside `observing` and without gradients.

    Args:
        classifier: stays as it was.
        job: the pictures.
        profile: the layer's forward profile at the recipe's size.
        copied: see `TruncatedNetwork`.

    Raises:
        UserError: the layer is unknown or has no channels, the network cannot take pictures of this size, or as
            `Job.batch_size`.
    """

    def __init__(self, classifier: Classifier, job: Job, *, profile: ForwardProfile, copied: Classifier) -> None:
        self.job = job
        self.recipe = job.recipe
        self.layer = find_layer(classifier.layers, job.layer).name
        self.parameterization = Parameterization(recipe=job.recipe, channels=classifier.in_channels)
        self.objective = job.total_objective(classifier)
        self.before = next(iter(job.compared_layers(classifier)[-2:-1]), None)
        self.network = TruncatedNetwork(
            classifier,
            job.layers(classifier),
            size=job.recipe.size,
            normalize=job.recipe.normalize,
            bf16=uses_bf16(job.recipe, device_of(classifier)),
            profile=profile,
            copied=copied,
        )
        self.batch_size = job.batch_size(classifier, profile)
        self._noise_statistics = cache(self._measure_on_noise)
        self._top_scores = cache(self._find_top_scores)

    def render(self, indices: Sequence[int], on_step: Callable[[int], None]) -> SynthesisResult:
        """Return one micro-batch: the pictures of the job at some indices.

        Where the objective is `natural`, pictures that activate their channel less than the best real image does are
        optimized once more, from where they are, at `FASTER` times the learning rate, and replaced if that is better.
        """
        start = None if self.job.start is None else self.job.start[list(indices)]
        found = self._render(indices, self.parameterization, start, on_step, self.batch_size)
        weak = self._weaker_than_real_images(found, [self.job.channels[i] for i in indices])
        faster = replace(self.recipe, learning_rate=FASTER * self.recipe.learning_rate)
        parameterization = replace(self.parameterization, recipe=faster)
        size = min(self.batch_size, AGAIN)
        pictures = [found.select([i]) for i in range(len(indices))]
        for some in (weak[i : i + size] for i in range(0, len(weak), size)):
            chosen, start = [indices[i] for i in some], found.parameters[some]
            again = self._render(chosen, parameterization, start, lambda _step: None, size)
            for n, i in enumerate(some):
                if again.activation[n] > found.activation[i]:
                    pictures[i] = again.select([n])
        return merge_results([((i,), picture) for i, picture in enumerate(pictures)]) if weak else found

    def _weaker_than_real_images(self, found: SynthesisResult, channels: Sequence[int]) -> list[int]:
        """Return the places of `natural` pictures that activate their channel less than the best real image does."""
        job = self.job
        if job.known is None or job.objective is not None or job.directions is not None or self.recipe.compares_samples:
            return []
        if self.recipe.weights.get("natural", 0) <= 0:
            return []
        weak: list[int] = (job.known.multiple(found.activation, channels) < 1).nonzero()[:, 0].tolist()
        return weak

    def _render(
        self,
        indices: Sequence[int],
        parameterization: Parameterization,
        start: Tensor | None,
        on_step: Callable[[int], None],
        size: int,
    ) -> SynthesisResult:
        """Return pictures, optimized from a start or from noise.

        The batch is filled up to its full size, so that the bits of a picture do not depend on how many there are.
        """
        job = self.job
        missing = 0 if self.recipe.compares_samples else max(0, size - len(indices))
        filled = [*indices, *[indices[-1]] * missing]
        own = [job.channels[i] for i in filled]
        generators = self._generators(filled)
        if start is not None:
            start = torch.cat([start, start[-1:].expand(missing, *start.shape[1:])]).to(self.network.device)
        parameters, curve = optimize(
            self.network,
            lambda outputs, slope: self._score(outputs, own, slope),
            parameterization,
            self._noise(generators) if start is None else start,
            generators,
            warm=start is not None,
            on_step=on_step,
        )
        images = self.parameterization.images(parameters)
        outputs, importance = self._importance(images, own)
        if self.recipe.fade and not self.recipe.minimizes:
            images = self._faded(images, importance, own, own_responses(self._responses(outputs), own))
            outputs = self.network(images)
        responses = self._responses(outputs)
        activation = own_responses(responses, own)
        result = SynthesisResult(
            images=(images if self.recipe.bounded else stretch_contrast(images)).cpu(),
            parameters=parameters.cpu(),
            curve=curve.cpu(),
            activation=activation,
            rank=ranks(responses, own, job.known),
            converged=(curve[-1] > curve[0]).cpu() if self.recipe.minimizes else self._above_noise(filled, activation),
            responses=responses,
            support=self._support(images, outputs, own, activation),
            importance=importance[:, 0].cpu(),
        )
        return result.select(range(len(indices))) if missing else result

    def _score(self, outputs: dict[str, Tensor], channels: Sequence[int], slope: float) -> Tensor:
        return self.objective(
            outputs,
            self.layer,
            channels,
            slope=slope,
            dead_unit_weight=self.recipe.leaky_slope,
            measure=self._statistics_of,
            imitate=lambda layer: self._imitated(layer, channels),
        )

    def _imitated(self, layer: str, channels: Sequence[int]) -> Tensor:
        """Return the z-scores of a layer for the real images that activate each picture's channel most, `(N, K)`."""
        return self._top_scores(layer)[[self.job.channel_set.index(channel) for channel in channels]]

    def _find_top_scores(self, layer: str) -> Tensor:
        known = self.job.statistics
        scores = None if known is None else known.top_scores(self.job.layer, self.job.channel_set, layer)
        if scores is None:
            raise UserError(f"the objective likeness needs statistics of real images of {layer} and {self.layer}")
        return scores

    def _support(
        self, images: Tensor, outputs: dict[str, Tensor], channels: Sequence[int], activation: Tensor
    ) -> Tensor:
        if self.before is None or self.job.statistics is None:
            return torch.full((len(channels),), torch.nan)
        largest = self.job.statistics.of(self.before).largest.to(images.device)
        scale = (largest / mean_response(outputs[self.before]).clamp_min(1e-12)).clamp(max=1)[..., None, None]
        module = self.network.targets[self.before]
        handle = module.register_forward_hook(lambda _module, _inputs, output: output * scale.to(output.dtype))
        try:
            limited = self._responses(self.network(images))
        finally:
            handle.remove()
        return own_responses(limited, channels) / activation.clamp_min(1e-12)

    def _importance(self, images: Tensor, channels: Sequence[int]) -> tuple[dict[str, Tensor], Tensor]:
        """Return the network's outputs for images, and how much each place adds to the activation, `(N, 1, h, w)`.

        The gradient times the difference from the image's mean colour is to first order what a place adds.
        """
        with torch.enable_grad():
            seen = images.detach().requires_grad_()
            outputs = self.network(seen)
            (gradient,) = torch.autograd.grad(own_responses(self._responses(outputs), channels).sum(), seen)
        added = (gradient * (images - images.mean((2, 3), keepdim=True))).sum(1, keepdim=True).clamp_min(0)
        side = max(3, self.recipe.size // 20 | 1)
        for _ in range(2):
            added = F.avg_pool2d(added, side, stride=1, padding=side // 2, count_include_pad=False)
        strongest = added.flatten(1).kthvalue(math.ceil(0.95 * added[0].numel())).values[:, None, None, None]
        importance = torch.where(strongest > 0, added / strongest, 1.0).clamp(max=1).sqrt().half()
        return {name: output.detach() for name, output in outputs.items()}, importance

    def _faded(self, images: Tensor, importance: Tensor, channels: Sequence[int], activation: Tensor) -> Tensor:
        """Return the images, of their mean colour where they are unimportant.

        Those that would lose more than a tenth of their activation stay as they are.
        """
        opacity = importance.float()
        faded = opacity * images + (1 - opacity) * images.mean((2, 3), keepdim=True)
        left = own_responses(self._responses(self.network(faded)), channels)
        kept = (left >= activation - 0.1 * activation.abs()).to(images.device)
        return torch.where(kept[:, None, None, None], faded, images)

    def _statistics_of(self, layer: str) -> LayerStatistics:
        if self.job.directions is not None or self.job.statistics is None:
            return self._noise_statistics(layer)
        known = self.job.known if layer == self.layer else self.job.statistics.layers.get(layer)
        return known or self._noise_statistics(layer)

    def _measure_on_noise(self, layer: str) -> LayerStatistics:
        """Return the statistics on 64 images of noise whose spectrum falls with frequency like that of real images."""
        natural = Parameterization(recipe=Recipe(size=self.recipe.size), channels=self.network.network.in_channels)
        with torch.no_grad():
            noise = natural.images(60 * natural.draw([torch.Generator().manual_seed(i) for i in range(64)]))
            parts = torch.split(noise.to(self.network.device), 8)
            return LayerStatistics.of_responses(
                torch.cat([mean_response(self.network(part)[layer]).cpu() for part in parts])
            )

    def _above_noise(self, indices: Sequence[int], activation: Tensor) -> Tensor:
        """Return for each picture whether its activation is above that of the noise an optimization starts from."""
        own = [self.job.channels[i] for i in indices]
        if self.job.known is not None and bool((activation > self.job.known.largest[own]).all()):
            return torch.ones(len(own), dtype=torch.bool)  # above all real images: noise need not be measured
        before = self._responses(self.network(self.parameterization.images(self._noise(self._generators(indices)))))
        return activation > own_responses(before, own)

    def _generators(self, indices: Sequence[int]) -> list[torch.Generator]:
        """Return a random generator for each picture, for its noise and then its transforms."""
        pairs = self.job.pairs
        names = (f"{self.layer} {pairs[i][0]} {pairs[i][1]} {self.job.seed}" for i in indices)
        digests = (hashlib.sha256(name.encode()).digest() for name in names)
        return [torch.Generator().manual_seed(int.from_bytes(digest[:7], "little")) for digest in digests]

    def _noise(self, generators: Sequence[torch.Generator]) -> Tensor:
        return self.parameterization.draw(generators).to(self.network.device)

    def _responses(self, outputs: dict[str, Tensor]) -> Tensor:
        output = outputs[self.layer]
        directions = self.job.directions
        return (mean_response(output) if directions is None else mean_along(output, directions)).cpu()


def start_from(images: Tensor, recipe: Recipe) -> Tensor:
    """Return the parameters that represent images `(N, C, size, size)` in [0, 1], as `start` of an optimization.

    Raises:
        UserError: the images have another size than the recipe.
    """
    if images.dim() != 4 or images.shape[2:] != (recipe.size, recipe.size):
        raise UserError(
            f"a start of shape {tuple(images.shape)} does not fit; it must be (N, C, {recipe.size}, {recipe.size})"
        )
    return Parameterization(recipe=recipe, channels=images.shape[1]).parameters(images)
