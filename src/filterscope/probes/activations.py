"""What images cause: feature maps at named layers, and probabilities of classes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from filterscope.models.classifier import Classifier
from filterscope.probes.observing import device_of, observing, tapping


def activations(classifier: Classifier, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    """Return the feature maps that images cause at the named layers, from one forward pass.

    Args:
        classifier: is left as it was.
        images: `(N, C, H, W)` in [0, 1].
        layers: names as `Classifier.layers` knows them; a convolution's name means its output before the ReLU.

    Returns:
        `{name: (N, channels, h, w)}`, float32 on the CPU, `(N, features)` for a Linear.
    """
    with observing(classifier), torch.no_grad(), tapping(classifier, layers) as outputs:
        classifier(images.to(device_of(classifier)))
        return {name: outputs[name].float().cpu() for name in layers}


def probabilities(classifier: Classifier, images: Tensor) -> Tensor:
    """Return the class probabilities `(N, classes)` of images in [0, 1], float32 on the CPU."""
    with observing(classifier), torch.no_grad():
        logits: Tensor = classifier(images.to(device_of(classifier)))
        return logits.float().softmax(dim=1).cpu()
