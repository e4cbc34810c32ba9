"""ReLUs inside convolutions and behind poolings: the same numbers with fewer passes over the maps."""

import pytest
import torch
from torch import nn

from filterscope.analysis.synthesis.fused import following, plans_for
from filterscope.analysis.synthesis.packed import PackedConv, packs

pytestmark = pytest.mark.skipif(
    not packs(nn.Conv2d(4, 6, 3)), reason="this processor's library packs no weights, so nothing is fused"
)


def packed(channels: int, filters: int) -> PackedConv:
    return PackedConv(nn.Conv2d(channels, filters, 3, padding=1))


def trunk() -> nn.Sequential:
    """Every kind of place a ReLU can have: before pooling, before a convolution, used twice, without a convolution."""
    twice = nn.ReLU()
    return nn.Sequential(
        *(packed(3, 16), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)),
        *(packed(16, 16), twice, packed(16, 32), twice, nn.AvgPool2d(2)),
        nn.Sequential(packed(32, 32), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.ReLU(), packed(32, 16), nn.ReLU6()),
    ).eval()  # fmt: skip


def numbers(network: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    images = images.clone().requires_grad_()
    output = network(images)
    (gradient,) = torch.autograd.grad((output * output.detach().cos()).sum(), images)
    return output.detach(), gradient


def test_outputs_and_gradients_are_the_same_bits():
    torch.manual_seed(0)
    network, images = trunk(), torch.randn(2, 3, 25, 31)
    plain = numbers(network, images)
    plans = plans_for(network, kept=())
    assert [len(steps) for steps in plans.values()] == [1 + 1 + 1 + 1 + 2]
    with following(plans):
        assert all(map(torch.equal, numbers(network, images), plain))
    assert "forward" not in vars(network)
    assert all(map(torch.equal, numbers(network, images), plain))


def test_fewer_passes_over_the_maps_are_made():
    network, images = trunk(), torch.randn(2, 3, 24, 24)
    ran: list[nn.Module] = []
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda module, *_: ran.append(module))
    network(images)
    assert len(ran) == 5
    ran.clear()
    with following(plans_for(network, kept=())):
        network(images)
    assert len(ran) == 2  # those without a convolution before them


@pytest.mark.parametrize("place", [0, 1])
def test_what_is_looked_at_puts_out_what_it_always_does(place):
    network, images = trunk(), torch.randn(2, 3, 24, 24)
    seen = []
    network[place].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    network(images)
    with following(plans_for(network, kept={network[place]})):
        network(images)
    plain, fused = seen
    assert torch.equal(plain, fused)


def test_a_sequential_of_another_kind_is_left_alone():
    class Own(nn.Sequential):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self[0](images)

    assert not plans_for(Own(packed(3, 4), nn.ReLU()), kept=())


def test_after_an_exception_nothing_is_left():
    network = trunk()
    with pytest.raises(ZeroDivisionError), following(plans_for(network, kept=())):
        raise ZeroDivisionError
    assert "forward" not in vars(network)
