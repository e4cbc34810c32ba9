"""What every filter looked like in the epochs so far, remembered for the gallery."""

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
from filterscope.visuals.drawing.thumbnails import small_kernels, small_maps
from filterscope.visuals.fingerprints import is_frozen
from filterscope.visuals.output.outputs import Output
from filterscope.visuals.timeline import most_crowded
from filterscope.visuals.visual import Examples, Visual, VisualState

SYNTHESIS = 64  # pixels of the side of the synthesized pictures that are remembered


@register("visual", "history")
@dataclass(frozen=True, kw_only=True)
class History(Visual):
    """Remember kernel, response and verdict of every filter that is trained; draws nothing itself.

    What is remembered is small (a pixel per weight and value, uint8), lies in the checkpoint, and is what the slider of
    the gallery moves through. Outside training nothing is remembered.

    Attributes:
        layers: names of convolutions; None: all. Frozen ones have no story and are left out.
        image: the number of the example that the filters respond to.
        pixels: of the longer side of a response at most.
        epochs: at most so many; of more epochs, those are kept that lie most evenly.
        every: look every so many epochs, 0: before training only.
    """

    priority: ClassVar[int] = 1

    layers: Sequence[str] | None = None
    image: int = 0
    pixels: int = 20
    epochs: int = 12

    def __post_init__(self) -> None:
        """Refuse a history without a before and an after."""
        if self.epochs < 2:
            raise UserError(f"visuals.history.epochs={self.epochs}; a history needs at least 2")

    def unsupported_reason(self, classifier: Classifier) -> str:
        """Say why there is nothing to remember, or nothing."""
        return "" if convolutions(classifier.layers) else "the network has no convolutions"

    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> dict[str, Output]:
        """Remember this epoch; nothing is shown.

        Raises:
            UserError: there is no such example.
        """
        if state.epoch is None:
            return {}
        if len(examples) and not 0 <= self.image < len(examples):
            raise UserError(f"visuals.history.image={self.image}: there are {len(examples)} examples")
        asked = self.layers if self.layers is not None else convolutions(classifier.layers)
        names = [find_layer(classifier.layers, name).name for name in asked]
        names = [layer for layer in names if not is_frozen(classifier, layer)]
        maps = activations(classifier, examples.images[[self.image]], names) if len(examples) and names else {}
        store = state.store.setdefault("history", {})
        for layer in names:
            known = store.setdefault(layer, {})
            known[state.epoch] = self._seen(classifier, layer, maps.get(layer), state)
            if len(known) > self.epochs:
                del known[most_crowded(sorted(known))]
        return {}

    def _seen(self, classifier: Classifier, layer: str, maps: Tensor | None, state: VisualState) -> dict[str, Any]:
        seen: dict[str, Any] = {"kernel": torch.from_numpy(small_kernels(kernels(classifier, layer))[0])}
        if maps is not None:
            seen["response"] = small_maps(maps[0], self.pixels)
        judged = state.store.get("health", {}).get(layer, {})
        if "verdicts" in judged:
            seen["verdicts"] = list(judged["verdicts"])
        made = state.store.get("synthesis", {}).get(layer, {})
        if "tiles" in made:
            tiles = made["tiles"].permute(0, 3, 1, 2).float()
            small = F.interpolate(tiles, (SYNTHESIS, SYNTHESIS), mode="bilinear", antialias=True)
            seen["channels"] = list(made["channels"])
            seen["synthesis"] = small.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        return seen
