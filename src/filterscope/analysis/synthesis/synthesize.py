"""Synthesis: one picture for each channel asked for, made in fixed micro-batches."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from filterscope.analysis.hooks import observing
from filterscope.analysis.synthesis.layer_renderer import LayerRenderer, Synthesis, placed
from filterscope.analysis.synthesis.micro_batches import samples_per_channel, split_channels
from filterscope.analysis.synthesis.objectives import Maker
from filterscope.analysis.synthesis.parameterization import Parameterization
from filterscope.analysis.synthesis.recipe import Recipe
from filterscope.analysis.synthesis.trust import ActivationStatistics
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier


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
            wherever a channel stands. Where pictures of a channel shall differ (`diversity`), it is always they.
        progress: is told after every step how many of how many are done.
        objective: makes another objective than the recipe's.

    Raises:
        UserError: an unknown layer, one without channels, a channel that it does not have, a size that the network
            cannot take, a start of another shape, no memory for a single picture.
    """
    with observing(classifier), torch.no_grad():
        known = statistics.layers.get(layer) if statistics is not None else None
        bench = LayerRenderer(classifier, layer, recipe=recipe, statistics=known, objective=objective)
        bench.check_channels(channels, start)
        count = micro_batch or bench.together(len(channels))
        faces = samples_per_channel(channels)
        batches = split_channels(channels, count, by_channel=recipe.compares)
        parts = []
        for done, places in enumerate(batches):
            made = bench.make(
                [channels[place] for place in places],
                [faces[place] for place in places],
                count=len(places) if recipe.compares else count,
                seed=seed,
                start=None if start is None else start[places],
                stepped=_tell(progress, done * recipe.steps, len(batches) * recipe.steps),
            )
            parts.append((places, made))
    return placed(parts)


def start_from(images: Tensor, recipe: Recipe) -> Tensor:
    """Return the parameters that stand for given images `(N, C, size, size)` in [0, 1], to start from."""
    if images.dim() != 4 or images.shape[2:] != (recipe.size, recipe.size):
        raise UserError(
            f"a start of shape {tuple(images.shape)} does not fit; it must be (N, C, {recipe.size}, {recipe.size})"
        )
    return Parameterization(recipe=recipe, channels=images.shape[1]).parameters(images)


def _tell(progress: Callable[[int, int], None] | None, before: int, total: int) -> Callable[[int], None]:
    return (lambda step: progress(before + step, total)) if progress is not None else (lambda _step: None)
