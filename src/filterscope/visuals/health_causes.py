"""On demand: what silencing filters costs, and how layers respond to natural structure, beside a random twin."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.layers import convolutions, find_layer
from filterscope.probes.health.ablation import silencing
from filterscope.probes.health.spectrum import natural_preference, random_twin
from filterscope.visuals.health import Health
from filterscope.visuals.visual import Examples, Output, Past, Table


@dataclass(frozen=True, kw_only=True)
class HealthCauses:
    """Put the verdicts to the test: the table `health/causes`, a row per layer.

    Filters called noise, idle or dead are silenced together, then as many random and as many useful ones; and the
    layer's response to images is compared with that to their phase-scrambled selves, in a random twin too.

    Attributes:
        health: how filters are judged.
        layers: names of convolutions; None: all.
        images: at most so many examples are looked at.
        draws: of random and of useful sets.
        batch_size: of the forward passes.
        every: look every so many epochs, 0: before training only.
    """

    needs_images: ClassVar[bool] = True

    health: Health = field(default_factory=Health)
    layers: Sequence[str] | None = None
    images: int = 256
    draws: int = 20
    batch_size: int = 64
    every: int = 0

    def __call__(self, classifier: Classifier, examples: Examples, past: Past) -> dict[str, Output]:
        """Return the table.

        Raises:
            UserError: there are no images or no labels.
        """
        del past
        images, labels = examples.images[: self.images], examples.labels
        if labels is None or len(images) == 0:
            raise UserError(f"health_causes needs images with labels; got {len(images)} images without labels")
        labels = labels[: self.images]
        names = self.layers if self.layers is not None else convolutions(classifier.layers)
        layers = [find_layer(classifier.layers, name).name for name in names]
        said = _verdicts(self.health, classifier, Examples(images=images, labels=labels))
        own = natural_preference(classifier, images, layers=layers, batch_size=self.batch_size)
        twin = natural_preference(random_twin(classifier), images, layers=layers, batch_size=self.batch_size)
        rows: list[tuple[str | int | float, ...]] = []
        for layer in layers:
            found = silencing(
                classifier,
                images,
                labels,
                layer=layer,
                verdicts=said[layer],
                draws=self.draws,
                batch_size=self.batch_size,
            )
            costs = (found.size, found.unused, found.random, found.useful) if found else (0, "", "", "")
            error = found.errors[2] if found else ""
            natural = (float(own[layer].abs().median()), float(twin[layer].abs().median()))
            rows.append((layer, len(said[layer]), *costs, error, *natural))
        columns = ("layer", "filters", "silenced", "cost unused", "cost random", "cost useful", "± useful")
        return {
            "health/causes": Table(
                columns=(*columns, "natural preference", "of a random twin"),
                rows=tuple(rows),
                description=f"Accuracy lost on {len(images)} images when filters are silenced together, and how much "
                "responses differ between images and their phase-scrambled selves (0: not at all, 1: fully).",
            )
        }


def _verdicts(health: Health, classifier: Classifier, examples: Examples) -> dict[str, list[str]]:
    judged = Past()
    health(classifier, examples, judged)
    return {layer: known["verdicts"] for layer, known in judged.store["health"].items()}
