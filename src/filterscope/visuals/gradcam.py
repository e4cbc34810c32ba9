"""Draw which image regions support the predicted class (Grad-CAM)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import PositiveInt
from torch import Tensor

from filterscope.analysis.activations import probabilities
from filterscope.analysis.gradcam import grad_cam
from filterscope.models.classifier import Classifier
from filterscope.models.layers import convolutions, find_layer
from filterscope.registry import register
from filterscope.visuals.drawing.grid import Cell, column_count, grid, tile_size
from filterscope.visuals.drawing.text import caption_lines
from filterscope.visuals.drawing.tiles import heat_colours, photo, unsigned_legend
from filterscope.visuals.output.outputs import Picture
from filterscope.visuals.visual import Examples, Visual, VisualState, epoch_label, example_name, name_of

_EXPLANATION = (
    "Each image is drawn twice: unchanged, with its true name, and with the regions highlighted that support the "
    "predicted class (Grad-CAM at **{layer}**, each map scaled by its own largest value). The highlight should be on "
    "the object itself; a highlight beside it means that the network relies on something else."
)


@register("visual", "gradcam")
@dataclass(frozen=True, kw_only=True)
class GradCAM(Visual):
    """Draw the image regions that support the predicted class: `gradcam/<layer>`.

    Attributes:
        layer: the layer whose feature maps are weighted; None: the last convolution.
        images: the number of examples.
        columns: pairs of images per row, at most.
    """

    layer: str | None = None
    images: PositiveInt = 8
    columns: PositiveInt = 2
    needs_images: ClassVar[bool] = True
    needs_convolutions: ClassVar[bool] = True

    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> dict[str, Picture]:
        """Return one picture."""
        layer = find_layer(classifier.layers, self.layer or convolutions(classifier.layers)[-1]).name
        images = examples.images[: self.images]
        chances, guesses = probabilities(classifier, images).max(dim=1)
        maps = grad_cam(classifier, images, guesses, layer=layer)
        names = examples.class_names or classifier.class_names
        pairs = column_count(len(images), most=self.columns)
        size = tile_size(2 * pairs)
        cells = []
        for i, (image, values, guess) in enumerate(zip(images, maps, guesses.tolist(), strict=True)):
            true, predicted = example_name(examples, i), f"{name_of(guess, names)} {float(chances[i]):.0%}"
            cells.append(Cell(pixels=photo(image, size), caption=caption_lines(true, width=size) if true else ()))
            caption = caption_lines(predicted, width=size)
            cells.append(Cell(pixels=photo(overlaid(image, values), size), caption=caption))
        pixels = grid(
            cells,
            columns=2 * pairs,
            title=f"Grad-CAM, {layer}",
            header_note=epoch_label(state),
            notes=["left: the image; right: bright regions support the predicted class"],
            legend=unsigned_legend(),
        )
        return {f"gradcam/{layer}": Picture(pixels=pixels, description=_EXPLANATION.format(layer=layer))}


def overlaid(image: Tensor, values: Tensor) -> Tensor:
    """Return an image `(C, H, W)` in grey, covered with the colours of a map `(H, W)`; larger values cover more."""
    values = values.nan_to_num()
    strength = values / values.max().clamp_min(1e-12)
    colours = torch.from_numpy(heat_colours(strength)).permute(2, 0, 1).float() / 255
    grey = image.mean(0, keepdim=True).expand(3, -1, -1)
    return torch.lerp(grey, colours, 0.25 + 0.55 * strength)
