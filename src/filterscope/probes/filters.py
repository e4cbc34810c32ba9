"""The kernels of a convolution as tensors."""

from torch import Tensor, nn

from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.layers import convolutions


def kernels(classifier: Classifier, layer: str) -> Tensor:
    """Return the kernels of a convolution, `(filters, input channels per group, kh, kw)`, float32 on the CPU.

    Raises:
        UserError: the layer is no convolution.
    """
    module = classifier.module_of(layer)
    if not isinstance(module, nn.Conv2d):
        raise UserError(
            f"layer {layer!r} has no kernels; this network has {', '.join(convolutions(classifier.layers))}"
        )
    return module.weight.detach().float().cpu().clone()
