"""The network's layers as a table: what each puts out and how many parameters it has."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from filterscope.models.classifier import Classifier
from filterscope.models.layer_summary import Row, summarize
from filterscope.models.layers import convolutions
from filterscope.registry import register
from filterscope.visuals.output.outputs import Table
from filterscope.visuals.visual import Every, Examples, Visual, VisualState

log = logging.getLogger(__name__)


@register("visual", "summary")
@dataclass(frozen=True, kw_only=True)
class Layers(Visual):
    """Say and keep what layers there are: `summary`.

    Attributes:
        image_size: of the images that pass through, pixels; None: the network's own.
        fully_connected: whether to count what follows the convolutional part, too.
        every: every so many epochs, 0: before training only.
    """

    image_size: int | None = None
    fully_connected: bool = True
    every: Every = 0

    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> dict[str, Table]:
        """Return the table, whose last row is the total, and tell it to the log."""
        del examples, state
        size = self.image_size or classifier.image_size or classifier.backbone.image_size
        rows = summarize(classifier, image_size=size).rows
        if not self.fully_connected:
            rows = rows[: _end_of_convolutional(rows, classifier) + 1]
        cells = [(row.layer, "×".join(map(str, row.shape)), row.parameters) for row in rows]
        cells.append(("total", "", sum(row.parameters for row in rows)))
        log.info("%s for images of %d×%d pixels:", classifier.backbone.name, size, size)
        for layer, shape, parameters in cells:
            log.info("  %-16s %14s %14s", layer, shape, f"{parameters:,}")
        return {
            "summary": Table(
                columns=("layer", "output", "parameters"),
                rows=tuple(cells),
                description=f"The layers of {classifier.backbone.name} for images of {size}×{size} pixels: what each "
                "puts out (channels × height × width) and how many parameters it has.",
            )
        }


def _end_of_convolutional(rows: Sequence[Row], classifier: Classifier) -> int:
    """Return the place of the last pooling before anything fully connected, or of the last convolution."""
    convs = set(convolutions(classifier.layers))
    last = max((i for i, row in enumerate(rows) if row.layer in convs), default=len(rows) - 1)
    named = [i for i, row in enumerate(rows) if i > last and row.layer.startswith("block")]
    return named[-1] if named else last
