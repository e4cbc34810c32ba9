"""The kernels of a convolution as tensors, and what many input channels of one come down to."""

import torch
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


def shared_patterns(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the spatial pattern that the inputs of each kernel share most, and how much of its shape it is.

    Each input's mean weight is taken off, since in deep layers it hides all shape. The pattern is the first right
    singular vector of what is left, as a matrix (inputs × positions), with the sign that it has when all inputs are
    equally active; the share is the first squared singular value over the sum of all.

    Args:
        weights: `(n, inputs, kh, kw)`.

    Returns:
        Patterns `(n, kh, kw)` of length one (all zero for a kernel without shape) and shares `(n,)` in [0, 1].
    """
    matrices = weights.flatten(2).double()
    matrices = matrices - matrices.mean(dim=2, keepdim=True)
    values, vectors = torch.linalg.eigh(matrices.mT @ matrices)
    first = vectors[..., -1]
    sign = torch.where((matrices @ first[..., None]).sum((1, 2)) < 0, -1.0, 1.0)
    total = values.clamp_min(0).sum(-1)
    # Rounding leaves a constant kernel a shape of its own.
    shaped = total > 1e-12 * weights.double().square().sum((1, 2, 3))
    share = torch.where(shaped, values[:, -1].clamp_min(0) / total.clamp_min(torch.finfo(total.dtype).tiny), 0.0)
    patterns = first * (sign * shaped)[:, None]
    return patterns.reshape(len(weights), *weights.shape[2:]).float(), share.float()


def strongest_inputs(weights: Tensor, count: int) -> Tensor:
    """Return the indices `(n, ≤ count)` of the inputs that carry most of each kernel's squared weight, most first."""
    energy = weights.flatten(2).square().sum(-1)
    return energy.topk(min(count, weights.shape[1]), dim=1).indices
