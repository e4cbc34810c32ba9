"""On demand: what silencing filters costs, and how layers respond to natural structure, beside a random twin."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from filterscope.analysis.health.ablation import silencing
from filterscope.analysis.health.spectrum import natural_preference, reinitialized_copy
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.layers import convolutions, find_layer
from filterscope.registry import register
from filterscope.visuals.health.health import Health
from filterscope.visuals.output.outputs import Output, Table
from filterscope.visuals.visual import Every, Examples, Visual, VisualState


@register("visual", "health_causes")
@dataclass(frozen=True, kw_only=True)
class HealthCauses(Visual):
    """Put the verdicts to the test, when the training has ended and on demand: `health/causes` and `health/natural`.

    Filters called noise, idle or dead are silenced together, then as many random and as many useful ones; and each
    layer's response to images is compared with that to their phase-scrambled selves, in a random twin too.

    Attributes:
        health: how filters are judged.
        layers: names of convolutions; None: all.
        each: silence filters of each layer by itself too, not only of all layers at once; costs far more time.
        images: so many examples are looked at, where there are as many.
        draws: of random and of useful sets.
        batch_size: of the forward passes.
        every: look every so many epochs too; 0: at the end of the training only.
    """

    needs_images: ClassVar[bool] = True
    at_end: ClassVar[bool] = True

    health: Health = field(default_factory=Health)
    layers: Sequence[str] | None = None
    each: bool = False
    images: int = 256
    draws: int = 5
    batch_size: int = 64
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
        names = self.layers if self.layers is not None else convolutions(classifier.layers)
        layers = [find_layer(classifier.layers, name).name for name in names]
        silenced = self._silenced(classifier, examples.images, labels, layers)
        return {"health/causes": silenced, "health/natural": self._natural(classifier, examples.images, layers)}

    def unsupported_reason(self, classifier: Classifier) -> str:
        """Say why this network cannot be judged, or nothing."""
        return self.health.unsupported_reason(classifier)

    def _silenced(self, classifier: Classifier, images: Tensor, labels: Tensor, layers: Sequence[str]) -> Table:
        known = _verdicts(self.health, classifier, Examples(images=images, labels=labels))
        said = {layer: known[layer] for layer in layers}
        groups = {"all at once": said} | ({layer: {layer: said[layer]} for layer in layers} if self.each else {})
        rows: list[tuple[str | int | float, ...]] = []
        for name, verdicts in groups.items():
            found = silencing(
                classifier,
                images,
                labels,
                verdicts=verdicts,
                draws=self.draws,
                batch_size=self.batch_size,
            )
            costs = (found.size, found.unused, found.random, found.useful) if found else (0, "", "", "")
            errors = found.errors[1:] if found else ("", "")
            rows.append((name, sum(map(len, verdicts.values())), *costs, *errors))
        columns = ("layers", "filters", "silenced", "unused", "random", "useful", "± random", "± useful")
        return Table(
            columns=columns,
            rows=tuple(rows),
            description=f"Share of {len(images)} images that are no longer right when so many filters are silenced "
            "together: ones called noise, idle or dead, random ones, useful ones.",
            terminal=True,
        )

    def _natural(self, classifier: Classifier, images: Tensor, layers: Sequence[str]) -> Table:
        own, twin = (
            natural_preference(network, images, layers=layers, batch_size=self.batch_size)
            for network in (classifier, reinitialized_copy(classifier))
        )
        rows = [(layer, float(own[layer].abs().median()), float(twin[layer].abs().median())) for layer in layers]
        return Table(
            columns=("layer", "natural preference", "of a random twin"),
            rows=tuple(rows),
            description=f"How much the responses to {len(images)} images differ from those to their phase-scrambled "
            "selves (median over the filters; 0: not at all, 1: fully).",
        )


def _verdicts(health: Health, classifier: Classifier, examples: Examples) -> dict[str, list[str]]:
    judged = VisualState()
    health(classifier, examples, judged)
    return {layer: known["verdicts"] for layer, known in judged.store["health"].items()}
