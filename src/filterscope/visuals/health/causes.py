"""Test the verdicts: the accuracy lost when filters are silenced, and the response to natural image structure."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from filterscope.analysis.health.causes import natural_preference, reinitialized_copy, silencing
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.registry import register
from filterscope.visuals.filter_selection import convolution_names
from filterscope.visuals.health.health import Health
from filterscope.visuals.output.outputs import Output, Table
from filterscope.visuals.visual import AtLeastOne, Every, Examples, LayerChoice, Visual, VisualState


@register("visual", "health_causes")
@dataclass(frozen=True, kw_only=True)
class HealthCauses(Visual):
    """Test the verdicts when training has ended, and on demand: `health/causes` and `health/natural`.

    `health/causes` silences the filters called noise, idle or dead together, then as many random and as many useful
    ones. `health/natural` compares each layer's response to images with its response to phase-scrambled versions of
    them, in the network and in a re-initialised copy.

    Attributes:
        health: how filters are judged.
        layers: names of convolutions; None: all.
        each: silence the filters of each layer separately too; this takes far more time.
        images: the largest number of examples used.
        draws: the number of random and of useful sets of filters.
        batch_size: of the forward passes.
        every: draw every so many epochs of a training as well; 0: at its end only.
    """

    needs_images: ClassVar[bool] = True
    needs_convolutions: ClassVar[bool] = True
    at_end: ClassVar[bool] = True

    health: Health = field(default_factory=Health)
    layers: LayerChoice = None
    each: bool = False
    images: AtLeastOne = 256
    draws: AtLeastOne = 5
    batch_size: AtLeastOne = 64
    every: Every = 0

    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> dict[str, Output]:
        """Return the tables.

        Raises:
            UserError: there are no images or no labels.
        """
        del state
        examples = examples.sample(self.images)
        labels = examples.labels
        if labels is None or len(examples) == 0:
            raise UserError(f"health_causes needs images with labels; got {len(examples)} images without labels")
        layers = convolution_names(classifier, self.layers)
        return {
            "health/causes": self._silence(classifier, examples.images, labels, layers),
            "health/natural": self._compare_natural(classifier, examples.images, layers),
        }

    def _silence(self, classifier: Classifier, images: Tensor, labels: Tensor, layers: Sequence[str]) -> Table:
        judged = VisualState()
        self.health(classifier, Examples(images=images, labels=labels), judged)
        verdicts = {layer: judged.store["health"][layer]["verdicts"] for layer in layers}
        groups = {"all at once": verdicts}
        if self.each:
            groups |= {layer: {layer: verdicts[layer]} for layer in layers}
        rows: list[tuple[str | int | float, ...]] = []
        for name, group in groups.items():
            cost = silencing(classifier, images, labels, verdicts=group, draws=self.draws, batch_size=self.batch_size)
            filters = sum(map(len, group.values()))
            if cost is None:
                rows.append((name, filters, 0, "", "", "", "", ""))
            else:
                rows.append((name, filters, cost.size, cost.unused, cost.random, cost.useful, *cost.errors[1:]))
        return Table(
            columns=("layers", "filters", "silenced", "unused", "random", "useful", "± random", "± useful"),
            rows=tuple(rows),
            description=f"Loss of accuracy, as a share of {len(images)} images, when so many filters are silenced "
            "together: filters called noise, idle or dead (unused), random filters, and useful filters.",
            terminal=True,
        )

    def _compare_natural(self, classifier: Classifier, images: Tensor, layers: Sequence[str]) -> Table:
        own, copy = (
            natural_preference(network, images, layers=layers, batch_size=self.batch_size)
            for network in (classifier, reinitialized_copy(classifier))
        )
        rows = [(layer, float(own[layer].abs().median()), float(copy[layer].abs().median())) for layer in layers]
        return Table(
            columns=("layer", "natural preference", "re-initialised copy"),
            rows=tuple(rows),
            description=f"How much the responses to {len(images)} images differ from those to phase-scrambled versions "
            "of them (median over the filters; 0: not at all, 1: fully), in the network and in a re-initialised copy.",
        )
