"""Where in an image the evidence for a class lies: Grad-CAM (Selvaraju et al. 2017), by captum."""

import torch
import torch.nn.functional as F
from torch import Tensor

from filterscope.analysis.hooks import device_of, observing
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier


def grad_cam(classifier: Classifier, images: Tensor, classes: Tensor, *, layer: str) -> Tensor:
    """Return how much each place of the images speaks for a class, `(N, H, W)`, rectified, in the images' own size.

    The maps of a layer, weighted by the mean gradient of the class's logit, summed; enlarged bilinearly.

    Args:
        classifier: is left as it was.
        images: `(N, C, H, W)` in [0, 1].
        classes: `(N,)`, the class that each image is asked about.
        layer: whose output is a map; a convolution's is the one before its ReLU.

    Raises:
        UserError: captum is not installed, or the layer puts out no maps.
    """
    try:
        from captum.attr import LayerGradCam
    except ImportError as error:
        raise UserError('Grad-CAM needs captum: pip install "filterscope[gradcam]"') from error
    device = device_of(classifier)
    with observing(classifier), torch.enable_grad():
        # A network that is frozen throughout has no gradients but those of its images.
        seen = images.to(device).clone().requires_grad_()
        maps = LayerGradCam(classifier, classifier.module_of(layer)).attribute(seen, target=classes.to(device))
    if maps.dim() != 4:
        raise UserError(f"Grad-CAM needs a layer that puts out maps, and {layer} does not")
    return F.interpolate(maps.detach().relu(), images.shape[-2:], mode="bilinear")[:, 0].cpu()
