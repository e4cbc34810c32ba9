"""Grad-CAM (Selvaraju et al. 2017), computed by captum: which parts of an image speak for a class."""

import torch
import torch.nn.functional as F
from torch import Tensor

from filterscope.analysis.hooks import device_of, observing
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier


def grad_cam(classifier: Classifier, images: Tensor, classes: Tensor, *, layer: str) -> Tensor:
    """Return how much each pixel of the images speaks for a class, `(N, H, W)`, rectified.

    It is the sum of a layer's feature maps, each weighted by the mean gradient of the class's logit, and enlarged
    bilinearly to the size of the images.

    Args:
        classifier: is left as it was.
        images: `(N, C, H, W)` in [0, 1].
        classes: `(N,)`, the class of interest for each image.
        layer: outputs feature maps; a convolution's output is the one before its ReLU.

    Raises:
        UserError: captum is not installed, or the layer does not output feature maps.
    """
    try:
        from captum.attr import LayerGradCam
    except ImportError as error:
        raise UserError('Grad-CAM needs captum: pip install "filterscope[gradcam]"') from error
    device = device_of(classifier)
    with observing(classifier), torch.enable_grad():
        # In a completely frozen network only the images can have gradients.
        inputs = images.to(device).clone().requires_grad_()
        maps = LayerGradCam(classifier, classifier.module_of(layer)).attribute(inputs, target=classes.to(device))
    if maps.dim() != 4:
        raise UserError(f"Grad-CAM needs a layer that outputs feature maps, and {layer} does not")
    return F.interpolate(maps.detach().relu(), images.shape[-2:], mode="bilinear")[:, 0].cpu()
