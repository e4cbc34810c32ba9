"""Where the network looks when it says what it says: Grad-CAM laid over the examples."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from filterscope.analysis.activations import probabilities
from filterscope.analysis.gradcam import grad_cam
from filterscope.models.classifier import Classifier
from filterscope.models.layers import convolutions, find_layer
from filterscope.registry import register
from filterscope.visuals.drawing.grid import Cell, grid, shape, side
from filterscope.visuals.drawing.text import named
from filterscope.visuals.drawing.tiles import photo, unsigned_legend, warmth
from filterscope.visuals.output.outputs import Picture
from filterscope.visuals.visual import Examples, Visual, VisualState, epoch_label, example_name, name_of

_HOW = (
    "Each image twice: as it is under its own name, and with the places bright that speak for the class that the "
    "network takes it for (Grad-CAM at **{layer}**, each map scaled by its own largest value). Light on the thing "
    "itself is as it should be; light beside it says that the network goes by something else."
)


@register("visual", "gradcam")
@dataclass(frozen=True, kw_only=True)
class GradCAM(Visual):
    """Draw where the evidence for the predicted class lies in the examples: `gradcam/<layer>`.

    Attributes:
        layer: whose maps are weighed; None: the last convolution.
        images: how many examples.
        columns: how many pairs stand side by side at most.
        every: draw every so many epochs, 0: before training only.
    """

    needs_images: ClassVar[bool] = True

    layer: str | None = None
    images: int = 8
    columns: int = 2

    def unsupported_reason(self, classifier: Classifier) -> str:
        """Say why it cannot be drawn, or nothing."""
        return "" if convolutions(classifier.layers) else "the network has no convolutions"

    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> dict[str, Picture]:
        """Return one picture."""
        layer = find_layer(classifier.layers, self.layer or convolutions(classifier.layers)[-1]).name
        images = examples.images[: self.images]
        chances, guesses = probabilities(classifier, images).max(dim=1)
        maps = grad_cam(classifier, images, guesses, layer=layer)
        names = examples.class_names or classifier.class_names
        said = [
            f"{name_of(guess, names)} {chance:.0%}"
            for guess, chance in zip(guesses.tolist(), chances.tolist(), strict=True)
        ]
        true = [example_name(examples, i) for i in range(len(images))]
        return {f"gradcam/{layer}": draw_gradcam(images, maps, true, said, layer, self.columns, epoch_label(state))}


def draw_gradcam(
    images: Tensor, maps: Tensor, true: list[str], said: list[str], layer: str, columns: int, aside: str
) -> Picture:
    """Draw images `(N, C, H, W)` beside themselves under their maps `(N, H, W)`."""
    pairs = shape(len(images), most=columns)
    size = side(2 * pairs)
    cells = []
    for image, values, name, guess in zip(images, maps, true, said, strict=True):
        cells.append(Cell(pixels=photo(image, size), caption=named(name, width=size) if name else ()))
        cells.append(Cell(pixels=photo(overlaid(image, values), size), caption=named(guess, width=size)))
    note = "left: the image; right: bright where the evidence lies for what the network says"
    drawn = grid(
        cells, columns=2 * pairs, title=f"Grad-CAM, {layer}", aside=aside, notes=[note], legend=unsigned_legend()
    )
    return Picture(drawn=drawn, description=_HOW.format(layer=layer))


def overlaid(image: Tensor, values: Tensor) -> Tensor:
    """Return a grey image `(3, H, W)` with a map `(H, W)` over it, the more of it the larger its value."""
    strength = values / values.max().clamp_min(1e-12)
    colours = torch.from_numpy(warmth(strength)).permute(2, 0, 1).float() / 255
    grey = image.mean(0, keepdim=True).expand(3, -1, -1)
    return torch.lerp(grey, colours, 0.25 + 0.55 * strength)
