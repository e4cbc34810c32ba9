"""Responses of filters to an image: kernels applied to its pixels, and feature maps in the network."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from filterscope.analysis.activations import activations
from filterscope.analysis.filters import kernels, shared_patterns
from filterscope.data.images import to_grey
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.layers import channels_of


def raw_response(image: Tensor, kernel: Tensor) -> Tensor:
    """Return the correlation of an image with a kernel, `(H, W)`: `cv2.filter2D`, summed over channels.

    The border is mirrored without repeating the edge (reflect-101); there is no stride, normalisation or bias.

    Args:
        image: `(C, H, W)`.
        kernel: `(C, kh, kw)`, anchored at its centre (`kh // 2`, `kw // 2`).

    Raises:
        UserError: the numbers of channels differ.
    """
    if len(image) != len(kernel):
        raise UserError(f"a kernel of {len(kernel)} channels cannot be applied to an image of {len(image)}")
    height, width = kernel.shape[1:]
    border = [(0, 0)] + [(size // 2, size - 1 - size // 2) for size in (height, width)]
    # NumPy mirrors a small image several times; torch refuses borders larger than the image.
    padded = torch.from_numpy(np.pad(image.float().cpu().numpy(), border, mode="reflect"))
    return F.conv2d(padded[None], kernel.float().cpu()[None])[0, 0]


def pixel_kernels(classifier: Classifier, layer: str, channels: list[int]) -> tuple[Tensor, bool]:
    """Return kernels `(n, C, kh, kw)` that can be applied to an image, and whether they are the layer's own.

    A kernel with as many inputs as the image has channels is returned as it is. Any other kernel sees feature maps,
    not pixels; the spatial pattern that its inputs share most (`shared_patterns`) is returned instead, with C = 1 for
    a grey image.
    """
    weights = kernels(classifier, layer)[channels]
    if weights.shape[1] == classifier.in_channels:
        return weights, True
    if weights.shape[1] == 1:
        return weights, False
    return shared_patterns(weights)[0][:, None], False


def raw_responses(classifier: Classifier, image: Tensor, layer: str, channels: list[int]) -> Tensor:
    """Return the correlations `(n, H, W)` of an image `(C, H, W)` with the kernels of a layer."""
    weights, _ = pixel_kernels(classifier, layer, channels)
    pixels = image if weights.shape[1] == len(image) else to_grey(image.cpu())
    return torch.stack([raw_response(pixels, kernel) for kernel in weights])


def true_responses(classifier: Classifier, image: Tensor, layer: str, channels: list[int]) -> Tensor:
    """Return the feature maps `(n, h, w)` of channels of a layer for an image `(C, H, W)`."""
    channels = channels_of(classifier.layers, layer, channels)
    return activations(classifier, image[None], [layer])[layer][0, channels]
