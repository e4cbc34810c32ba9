"""What a filter makes of an image: as if it saw the pixels itself, and as it truly answers in the network."""

import torch
import torch.nn.functional as F
from torch import Tensor

from filterscope.analysis.activations import activations
from filterscope.analysis.filters import kernels, shared_patterns
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.layers import channels_of

# ITU-R BT.601, as OpenCV and Pillow turn colour into grey.
_LUMA = (0.299, 0.587, 0.114)


def raw_response(image: Tensor, kernel: Tensor) -> Tensor:
    """Return the correlation of an image with a kernel, `(H, W)`: what `cv2.filter2D` makes, summed over channels.

    The border is the image mirrored without repeating its edge (reflect-101); nothing is strided, normalised or added.

    Args:
        image: `(C, H, W)`.
        kernel: `(C, kh, kw)`, anchored at its centre (`kh // 2`, `kw // 2`).

    Raises:
        UserError: the numbers of channels differ.
    """
    if len(image) != len(kernel):
        raise UserError(f"a kernel of {len(kernel)} channels cannot be laid on an image of {len(image)}")
    height, width = kernel.shape[1:]
    rows = _mirrored(image.shape[1], height // 2, height - 1 - height // 2)
    columns = _mirrored(image.shape[2], width // 2, width - 1 - width // 2)
    padded = image.float()[:, rows][:, :, columns]
    return F.conv2d(padded[None], kernel.float()[None])[0, 0]


def pixel_kernels(classifier: Classifier, layer: str, channels: list[int]) -> tuple[Tensor, bool]:
    """Return kernels `(n, C, kh, kw)` that can be laid on an image, and whether they are the layer's own.

    A kernel with as many inputs as the image has channels is taken as it is. Any other sees feature maps and no
    pixels: there it is the spatial pattern that its inputs share most (`shared_patterns`), for a grey image, C = 1.
    """
    weights = kernels(classifier, layer)[channels]
    if weights.shape[1] == classifier.in_channels:
        return weights, True
    if weights.shape[1] == 1:
        return weights, False
    return shared_patterns(weights)[0][:, None], False


def raw_responses(classifier: Classifier, image: Tensor, layer: str, channels: list[int]) -> Tensor:
    """Return what the kernels of a layer make of the pixels of an image `(C, H, W)`: `(n, H, W)`."""
    weights, _ = pixel_kernels(classifier, layer, channels)
    seen = image if weights.shape[1] == len(image) else grey(image)
    return torch.stack([raw_response(seen, kernel) for kernel in weights])


def true_responses(classifier: Classifier, image: Tensor, layer: str, channels: list[int]) -> Tensor:
    """Return the maps `(n, h, w)` that the network makes of an image `(C, H, W)`: with all inputs, stride and bias."""
    channels = channels_of(classifier.layers, layer, channels)
    return activations(classifier, image[None], [layer])[layer][0, channels]


def grey(image: Tensor) -> Tensor:
    """Return an image `(C, H, W)` in grey, `(1, H, W)`."""
    if len(image) == 1:
        return image
    return (image * torch.tensor(_LUMA, device=image.device)[:, None, None]).sum(0, keepdim=True)


def _mirrored(length: int, before: int, after: int) -> Tensor:
    """Indices of `before + length + after` places, mirrored at the ends as often as a small image needs it."""
    places = torch.arange(-before, length + after)
    if length == 1:
        return torch.zeros_like(places)
    places = places.remainder(2 * length - 2)
    return torch.minimum(places, 2 * length - 2 - places)
