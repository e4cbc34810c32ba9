"""Feature maps of named layers and class probabilities for images."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from filterscope.analysis.hooks import device_of, observing, run_model, tapping
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier


def activations(classifier: Classifier, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    """Return the feature maps of named layers for images, from one forward pass.

    Args:
        classifier: is left as it was.
        images: `(N, C, H, W)` in [0, 1].
        layers: names as in `Classifier.layers`; a convolution's output is the one before its ReLU.

    Returns:
        `{name: (N, channels, h, w)}`, float32 on the CPU, `(N, features)` for a Linear.
    """
    with observing(classifier), torch.no_grad(), tapping(classifier, layers) as outputs:
        run_model(classifier, images)
        return {name: outputs[name].float().cpu() for name in layers}


def network_outputs(classifier: Classifier, images: Tensor) -> Tensor:
    """Return what the network outputs for images in [0, 1], float32 on the CPU."""
    with observing(classifier), torch.no_grad():
        return run_model(classifier, images).float().cpu()


def probabilities(classifier: Classifier, images: Tensor) -> Tensor:
    """Return the class probabilities `(N, classes)` of images in [0, 1], float32 on the CPU.

    A network with one logit has two classes; the logit is that of the second. Outputs that are probabilities already,
    because the network ends in a sigmoid or softmax, are returned as they are.

    Raises:
        UserError: the network does not output one number per class.
    """
    classifier.check_logits()
    outputs = network_outputs(classifier, images)
    if classifier.num_classes == 1:
        chance = outputs if classifier.ends_in_probabilities else outputs.sigmoid()
        return torch.cat([1 - chance, chance], dim=1)
    return outputs if classifier.ends_in_probabilities else outputs.softmax(dim=1)


def published_probabilities(classifier: Classifier, images: Tensor) -> Tensor:
    """Return the published network's probabilities `(N, categories)` for images in [0, 1], on the CPU.

    They are valid only before training, while the backbone still has the published weights.

    Raises:
        UserError: the published network is incomplete (`Classifier.unpublished`).
    """
    if classifier.unpublished or classifier.published is None:
        raise UserError(f"the published network's predictions are not available: {classifier.unpublished}")
    last = copy.deepcopy(classifier.published).to(device_of(classifier))
    with observing(classifier), torch.no_grad():
        return run_model(nn.Sequential(classifier.backbone, last), images).float().softmax(dim=1).cpu()
