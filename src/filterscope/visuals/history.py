"""Record every trained filter in every epoch for the slider of the gallery and for animations."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from filterscope.analysis.activations import activations
from filterscope.analysis.filters import kernels
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.layers import convolutions, find_layer
from filterscope.registry import register
from filterscope.visuals.drawing.tiles import small_kernels, small_maps
from filterscope.visuals.layer_state import is_frozen
from filterscope.visuals.output.outputs import Output
from filterscope.visuals.visual import Examples, Visual, VisualState

SYNTHESIS_PIXELS = 64  # the side of a recorded synthesized image


@register("visual", "history")
@dataclass(frozen=True, kw_only=True)
class History(Visual):
    """Record kernel, response, verdict and synthesized image of every trained filter; draws nothing itself.

    The records are small (uint8, one pixel per weight) and are stored in the checkpoint. Outside training nothing is
    recorded.

    Attributes:
        layers: names of convolutions; None: all. Frozen layers do not change and are left out.
        image: the index of the example whose responses are recorded.
        pixels: the largest side of a recorded response.
        epochs: the largest number of recorded epochs; of more, the most evenly spaced ones are kept.
        every: record before training and then every so many epochs; 0: before training only.
    """

    priority: ClassVar[int] = 1

    layers: Sequence[str] | None = None
    image: int = 0
    pixels: int = 20
    epochs: int = 12

    def __post_init__(self) -> None:
        """Refuse fewer than two epochs."""
        if self.epochs < 2:
            raise UserError(f"visuals.history.epochs={self.epochs}: must be at least 2")

    def unsupported_reason(self, classifier: Classifier) -> str:
        """Return why there is nothing to record, or an empty text."""
        return "" if convolutions(classifier.layers) else "the network has no convolutions"

    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> dict[str, Output]:
        """Record this epoch and return no output.

        Raises:
            UserError: there is no example `image`.
        """
        if state.epoch is None:
            return {}
        if len(examples) and not 0 <= self.image < len(examples):
            raise UserError(f"visuals.history.image={self.image}: there are {len(examples)} examples")
        names = trained_layers(classifier, self.layers)
        maps = activations(classifier, examples.images[[self.image]], names) if len(examples) and names else {}
        store = state.store.setdefault("history", {})
        for layer in names:
            records = store.setdefault(layer, {})
            records[state.epoch] = self._record(classifier, layer, maps.get(layer), state)
            thin_out(records, self.epochs)
        return {}

    def _record(self, classifier: Classifier, layer: str, maps: Tensor | None, state: VisualState) -> dict[str, Any]:
        record: dict[str, Any] = {"kernel": torch.from_numpy(small_kernels(kernels(classifier, layer))[0])}
        if maps is not None:
            record["response"] = small_maps(maps[0], self.pixels)
        health = state.store.get("health", {}).get(layer, {})
        if "verdicts" in health:
            record["verdicts"] = list(health["verdicts"])
        synthesis = state.store.get("synthesis", {}).get(layer, {})
        if "tiles" in synthesis:
            tiles = synthesis["tiles"].permute(0, 3, 1, 2).float()
            small = F.interpolate(tiles, (SYNTHESIS_PIXELS, SYNTHESIS_PIXELS), mode="bilinear", antialias=True)
            record["channels"] = list(synthesis["channels"])
            record["synthesis"] = small.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        return record


def trained_layers(classifier: Classifier, layers: Sequence[str] | None) -> list[str]:
    """Return the names of the given convolutions (None: all) without the frozen ones."""
    asked = layers if layers is not None else convolutions(classifier.layers)
    names = [find_layer(classifier.layers, name).name for name in asked]
    return [name for name in names if not is_frozen(classifier, name)]


def thin_out(records: dict[int, Any], count: int) -> None:
    """Delete records by epoch until `count` evenly spaced ones are left; the first and the last stay."""
    while len(records) > count:
        epochs = sorted(records)
        gaps = {epochs[i]: epochs[i + 1] - epochs[i - 1] for i in range(1, len(epochs) - 1)}
        del records[min(gaps, key=lambda epoch: (gaps[epoch], epoch))]
