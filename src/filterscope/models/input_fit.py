"""Fit the weights of layers to the inputs that remain when filters are taken away (least squares; He et al. 2017)."""

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

BATCH = 32  # images of a forward pass
POSITIONS = 16  # of a map in each image, drawn at random, on which layers are fitted
RIDGES = (1.0, 0.1, 0.01, 0.001, 0.0001)  # of each input's mean square; the other half of the images says which is best

Consumer = tuple[nn.Module, int]
"""A convolution or Linear, and the number of its inputs that belong to a channel: the positions of flattened maps."""


def is_fittable(module: nn.Module) -> bool:
    """Return whether each output of a module is a weighted sum of all of its input channels."""
    plain = isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
    return plain and "weight" in dict(module.named_parameters(recurse=False))


def input_products(
    run: Callable[[Tensor], object], consumers: Iterable[Consumer], images: Tensor
) -> dict[Consumer, list[Tensor]]:
    """Return the sums, over each half of the images, of the products of each two input channels of modules.

    Args:
        run: runs the network that the modules belong to on a batch.
        consumers: the modules.
        images: `(N, C, H, W)`.

    Returns:
        two tensors `(channels + 1, channels + 1)` for each; the last channel is a constant 1.
    """
    found: dict[Consumer, list[Tensor]] = {key: [] for key in consumers}

    def add(key: Consumer, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        shown, size = inputs[0].detach().float(), key[1]
        maps = shown.flatten(2) if isinstance(key[0], nn.Conv2d) else shown.reshape(-1, shown.shape[-1] // size, size)
        order = torch.randperm(maps.shape[2], generator=torch.Generator().manual_seed(0))
        samples = maps[:, :, order[:POSITIONS].to(maps.device)].transpose(1, 2).flatten(0, 1)
        samples = torch.cat([samples, samples.new_ones(len(samples), 1)], 1)
        with torch.autocast(samples.device.type, enabled=False):
            found[key][-1] += (samples.T @ samples).double().cpu()

    with ExitStack() as stack, torch.no_grad():
        for key in found:
            stack.callback(key[0].register_forward_pre_hook(partial(add, key)).remove)
        for half in (images[::2], images[1::2]):
            for key, sums in found.items():
                count = key[0].get_parameter("weight").shape[1] // key[1] + 1
                sums.append(torch.zeros(count, count, dtype=torch.float64))
            for batch in torch.split(half, BATCH) if len(half) else ():
                run(batch)
    return found


def fitted_weights(consumer: Consumer, halves: Sequence[Tensor], gone: Collection[int]) -> dict[str, Tensor]:
    """Return the weights with which a module computes from the remaining inputs what is nearest to its output before.

    Each lost input is replaced by the linear combination of the others, and of a constant where the module has a bias,
    that is nearest to it (ridge regression). The weights of lost inputs are 0.

    Args:
        consumer: is not changed.
        halves: from `input_products`.
        gone: the lost input channels.

    Returns:
        `weight`, and `bias` if the module has one.
    """
    module, size = consumer
    own = {name: tensor.detach().clone() for name, tensor in module.named_parameters(recurse=False)}
    each = own["weight"].view(len(own["weight"]), -1, size) if isinstance(module, nn.Linear) else own["weight"]
    lost, taken = sorted(gone), set(gone)
    stay = [i for i in range(each.shape[1]) if i not in taken]
    known = stay if "bias" not in own else [*stay, each.shape[1]]
    weights, both = each[:, lost], halves[0] + halves[1]
    each[:, lost] = 0
    if not both.isfinite().all():
        return own
    effect = weights.double().square().flatten(2).sum((0, 2)).cpu()

    def solve(products: Tensor, ridge: float) -> Tensor:
        system = products[known][:, known]
        system.diagonal().add_(1e-30)
        system.diagonal()[: len(stay)].mul_(1 + ridge).add_(1e-9 * products.diagonal().max())
        coefficients: Tensor = torch.linalg.solve(system, products[known][:, lost])
        return coefficients

    def error(ridge: float) -> float:
        coefficients, other = solve(halves[0], ridge), halves[1]
        predicted = 2 * other[known][:, lost] - other[known][:, known] @ coefficients
        return float(((other.diagonal()[lost] - (coefficients * predicted).sum(0)) * effect).sum())

    coefficients = solve(both, min(RIDGES, key=error)).to(weights)
    with torch.autocast(weights.device.type, enabled=False):
        each[:, stay] += torch.einsum("og...,kg->ok...", weights, coefficients[: len(stay)])
        if "bias" in own:
            own["bias"] += torch.einsum("og...,g->o...", weights, coefficients[-1]).flatten(1).sum(1)
    return own
