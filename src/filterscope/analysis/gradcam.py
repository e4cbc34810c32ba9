"""Grad-CAM (Selvaraju et al. 2017): which parts of an image speak for a class."""

import torch
import torch.nn.functional as F
from torch import Tensor

from filterscope.analysis.hooks import device_of, observing, tapping
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier


def grad_cam(classifier: Classifier, images: Tensor, classes: Tensor, *, layer: str) -> Tensor:
    """Return how much each pixel of the images speaks for a class, `(N, H, W)`, rectified.

    It is the sum of a layer's feature maps, each weighted by the mean gradient of the class's logit, and enlarged
    bilinearly to the size of the images.

    Args:
        classifier: is left as it was.
        images: `(N, C, H, W)` in [0, 1].
        classes: `(N,)`, the class of interest for each image; 0 or 1 for a network with one logit.
        layer: outputs feature maps; a convolution's output is the one before its ReLU.

    Raises:
        UserError: the layer does not output feature maps, or the network does not output one number per class.
    """
    classifier.check_logits()
    device = device_of(classifier)
    with observing(classifier), torch.enable_grad(), tapping(classifier, [layer]) as outputs:
        # In a completely frozen network only the images can have gradients.
        logits = classifier(images.to(device).clone().requires_grad_())
        maps = outputs[layer]
        if maps.dim() != 4:
            raise UserError(f"Grad-CAM needs a layer that outputs feature maps, and {layer} does not")
        index = classes.to(device)
        # The first of two classes with one logit is what lowers it.
        scores = logits[:, 0] * (2 * index - 1) if logits.shape[1] == 1 else logits.gather(1, index[:, None])
        gradient = torch.autograd.grad(scores.sum(), maps, allow_unused=True)[0]
    if gradient is None:
        raise UserError(f"no gradient flows from the classes to {layer}, so it has no Grad-CAM")
    weighted = (maps.detach() * gradient.mean((2, 3), keepdim=True)).sum(1, keepdim=True).float()
    return F.interpolate(weighted.relu(), images.shape[-2:], mode="bilinear")[:, 0].cpu()
