"""The kernels of a convolution, and the spatial pattern that the input channels of a kernel share."""

import torch
from torch import Tensor, nn

from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.layers import convolutions


def kernels(classifier: Classifier, layer: str) -> Tensor:
    """Return the kernels of a convolution, `(filters, input channels per group, kh, kw)`, float32 on the CPU.

    Raises:
        UserError: the layer is not a convolution.
    """
    module = classifier.module_of(layer)
    if not isinstance(module, nn.Conv2d):
        raise UserError(
            f"layer {layer!r} has no kernels; this network has {', '.join(convolutions(classifier.layers))}"
        )
    return module.weight.detach().float().cpu().clone()


def shared_patterns(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the spatial pattern that the inputs of each kernel share most, and its share of the kernel's shape.

    Each input's mean weight is subtracted first, because in deep layers it hides all shape. The pattern is the first
    right singular vector of the remaining matrix (inputs × positions), with its sign for equally active inputs; the
    share is the first squared singular value over the sum of all.

    Args:
        weights: `(n, inputs, kh, kw)`.

    Returns:
        Patterns `(n, kh, kw)` of unit norm (zero for a constant kernel, or one that is not finite) and shares `(n,)` in
        [0, 1].
    """
    finite = weights.isfinite().flatten(1).all(1)
    weights = torch.where(finite[:, None, None, None], weights, 0)
    matrices = weights.flatten(2).double()
    matrices = matrices - matrices.mean(dim=2, keepdim=True)
    values, vectors = torch.linalg.eigh(matrices.mT @ matrices)
    first = vectors[..., -1]
    sign = torch.where((matrices @ first[..., None]).sum((1, 2)) < 0, -1.0, 1.0)
    total = values.clamp_min(0).sum(-1)
    # Rounding leaves a constant kernel a tiny shape.
    shaped = total > 1e-12 * weights.double().square().sum((1, 2, 3))
    share = torch.where(shaped, values[:, -1].clamp_min(0) / total.clamp_min(torch.finfo(total.dtype).tiny), 0.0)
    patterns = first * (sign * shaped)[:, None]
    return patterns.reshape(len(weights), *weights.shape[2:]).float(), share.float()


def strongest_inputs(weights: Tensor, count: int) -> Tensor:
    """Return the inputs with the most squared weight in each kernel, largest first, as indices `(n, ≤ count)`."""
    energy = weights.flatten(2).square().sum(-1)
    return energy.topk(min(count, weights.shape[1]), dim=1).indices
