"""Summarise the network's layers in a table: output shapes and numbers of parameters."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import PositiveInt

from filterscope.models.classifier import Classifier, LayerRow, layer_rows
from filterscope.models.layers import convolutions
from filterscope.registry import register
from filterscope.visuals.output.outputs import Table
from filterscope.visuals.visual import Every, Examples, Visual, VisualState

log = logging.getLogger(__name__)


@register("visual", "summary")
@dataclass(frozen=True, kw_only=True)
class LayerTable(Visual):
    """Log and save a table of the layers: `summary`.

    Attributes:
        image_size: of the input images, pixels; None: the network's own.
        fully_connected: whether the table includes the layers behind the convolutional part.
    """

    image_size: PositiveInt | None = None
    fully_connected: bool = True
    every: Every = 0

    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> dict[str, Table]:
        """Return the table, whose last row is the total, and log it."""
        size = self.image_size or classifier.image_size or classifier.backbone.image_size
        rows = layer_rows(classifier, image_size=size)
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
                description=f"The layers of {classifier.backbone.name} for images of {size}×{size} pixels, with the "
                "shape of their outputs (channels × height × width) and their numbers of parameters.",
            )
        }


def _end_of_convolutional(rows: Sequence[LayerRow], classifier: Classifier) -> int:
    """Return the index of the last pooling before the fully connected layers, or else of the last convolution."""
    names = set(convolutions(classifier.layers))
    last = max((i for i, row in enumerate(rows) if row.layer in names), default=len(rows) - 1)
    later = [i for i, row in enumerate(rows) if i > last and row.layer.startswith("block")]
    return later[-1] if later else last
