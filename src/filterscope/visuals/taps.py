"""What layers put out, as tensors in a file."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from filterscope.analysis.activations import activations
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.layers import block_ends
from filterscope.registry import register
from filterscope.visuals.output.outputs import Arrays
from filterscope.visuals.visual import Examples, Visual, VisualState


@register("visual", "taps")
@dataclass(frozen=True, kw_only=True)
class Taps(Visual):
    """Save what layers put out for the examples: `taps.npz`, with the images as `images`.

    Attributes:
        layers: names of layers; None: where blocks end. A convolution's name means its output before the ReLU.
        images: how many examples.
        every: save every so many epochs, 0: before training only.
    """

    layers: Sequence[str] | None = None
    images: int = 1
    needs_images: ClassVar[bool] = True

    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> dict[str, Arrays]:
        """Return the images and what they cause at every layer."""
        del state
        images = examples.images[: self.images]
        if not len(images):
            raise UserError("taps need images to look at: give images=[…] or a data set")
        layers = list(self.layers if self.layers is not None else block_ends(classifier.layers))
        return {"taps": Arrays(arrays={"images": images, **activations(classifier, images, layers)})}
