"""Finding output shapes leaves a network exactly as it was, whatever it shares or registers."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, weight_norm

from filterscope.models.forward_trace import calls_without_values


def chain() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Alias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = chain()
        self.features = nn.Sequential(*self.network.children())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.features(images)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.second = self.first

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(images)).mean((2, 3))


def pruned() -> nn.Module:
    network = chain()
    prune.l1_unstructured(network[0], "weight", amount=0.5)
    return network


def old_weight_norm() -> nn.Module:
    network = chain()
    with pytest.warns(FutureWarning):
        network[0] = weight_norm(network[0])
    return network


def spectral_norm() -> nn.Module:
    network = chain()
    parametrizations.spectral_norm(network[0])
    return network.train()


@pytest.mark.parametrize("build", [chain, Alias, Shared, pruned, old_weight_norm, spectral_norm])
def test_the_network_is_left_exactly_as_it_was(build) -> None:
    network = build()
    calls: list[int] = []
    network.register_forward_hook(lambda *_: calls.append(1))
    before = {name: (id(tensor), tensor.clone()) for name, tensor in network.state_dict(keep_vars=True).items()}
    modes = [module.training for module in network.modules()]
    random_state = torch.random.get_rng_state()
    traced = calls_without_values(network, in_channels=3, image_size=9)
    assert traced is not None
    assert (traced[-1].path, len(traced[-1].shape)) == ("", 1)
    after = network.state_dict(keep_vars=True)
    assert {name: id(tensor) for name, tensor in after.items()} == {name: i for name, (i, _) in before.items()}
    assert all(torch.equal(after[name], tensor) for name, (_, tensor) in before.items())
    assert [module.training for module in network.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert calls == []
    assert network(torch.rand(2, 3, 9, 9)).device.type == "cpu"
