"""Save the outputs of layers as tensors in a file."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from filterscope.analysis.activations import activations
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.layers import block_ends
from filterscope.registry import register
from filterscope.visuals.output.outputs import Arrays
from filterscope.visuals.visual import AtLeastOne, Examples, Visual, VisualState


@register("visual", "taps")
@dataclass(frozen=True, kw_only=True)
class Taps(Visual):
    """Save the outputs of layers for the examples in `taps.npz`, together with the `images`.

    Attributes:
        layers: names of layers; None: the ends of the blocks. A convolution's name means its output before the ReLU.
        images: the number of examples.
    """

    layers: Sequence[str] | None = None
    images: AtLeastOne = 1
    needs_images: ClassVar[bool] = True

    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> dict[str, Arrays]:
        """Return the images and the outputs of every layer."""
        del state
        images = examples.images[: self.images]
        if not len(images):
            raise UserError("taps need images: give images=[…] or a data set")
        layers = list(self.layers if self.layers is not None else block_ends(classifier.layers))
        return {"taps": Arrays(arrays={"images": images, **activations(classifier, images, layers)})}
