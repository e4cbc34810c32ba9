"""Weights as a plain list: one tensor for each convolution and Linear in the network's order, no names, no biases."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from filterscope.errors import UserError

log = logging.getLogger(__name__)


def weighted_layers(network: nn.Module) -> list[str]:
    """Return the paths of the convolutions and Linears of a network in its order."""
    return [path for path, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def named_tensors(tensors: Sequence[Tensor], network: nn.Module, *, path: Path, name: str) -> dict[str, Tensor]:
    """Return listed weights under the names that they have in a network.

    Raises:
        UserError: there are more or fewer than the network has convolutions and Linears.
    """
    layers = weighted_layers(network)
    if len(tensors) != len(layers):
        raise UserError(
            f"{path} is not for {name}: it lists {len(tensors)} weight tensors, {name} has {len(layers)} "
            "convolutions and fully connected layers"
        )
    log.info("%s lists weights without biases: all biases are zero", path)
    return {f"{layer}.weight": tensor for layer, tensor in zip(layers, tensors, strict=True)}


def zero_biases(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return biases of nought for the convolutions and Linears of a network whose own tensors are `state`."""
    names = (f"{layer}.bias" for layer in weighted_layers(network))
    return {name: torch.zeros(state[name].shape) for name in names if name in state}
