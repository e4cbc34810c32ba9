from typing import Any

import pytest
import torch
from torch import Tensor, nn

from filterscope.analysis.activations import activations
from filterscope.analysis.hooks import observing, recording_outputs, tapping
from filterscope.analysis.reductions import rectified_mean
from filterscope.models.backbone import Backbone
from filterscope.models.classifier import Classifier


@pytest.fixture
def classifier() -> Classifier:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    backbone = Backbone(network, name="tiny", mean=[0.5] * 3, std=[0.5] * 3)
    return Classifier(backbone, nn.Linear(4, 2), num_classes=2)


def flags(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def hooks(model: nn.Module) -> int:
    return sum(
        len(h)
        for m in model.modules()
        for h in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks)
    )


def mixed(classifier: Classifier) -> list[bool]:
    classifier.train()
    classifier.backbone.network[1].eval()  # a frozen batch norm in a network in training
    classifier.backbone.network[3].eval()
    return flags(classifier)


def test_each_module_gets_its_own_training_flag_back(classifier: Classifier) -> None:
    before = mixed(classifier)
    with observing(classifier):
        assert not any(flags(classifier))
    assert flags(classifier) == before


def test_flags_and_hooks_are_restored_after_an_exception(classifier: Classifier) -> None:
    before = mixed(classifier)

    def explode(*_: object) -> None:
        raise RuntimeError("boom")

    def look() -> None:
        with observing(classifier), tapping(classifier, ["head"]):
            classifier.backbone.network[0].register_forward_hook(explode)
            classifier.backbone.register_forward_pre_hook(explode)
            classifier.head.register_full_backward_hook(explode)
            classifier(torch.rand(1, 3, 8, 8))

    with pytest.raises(RuntimeError, match="boom"):
        look()
    assert flags(classifier) == before
    assert hooks(classifier) == 0


def test_hooks_that_were_there_before_stay(classifier: Classifier) -> None:
    seen: list[int] = []
    handle = classifier.head.register_forward_hook(lambda *_: seen.append(1))
    activations(classifier, torch.rand(1, 3, 8, 8), ["head"])
    assert hooks(classifier) == 1
    assert seen == [1]
    handle.remove()


def test_random_numbers_go_on_as_if_nobody_had_looked(classifier: Classifier) -> None:
    torch.manual_seed(7)
    expected = torch.rand(5)
    torch.manual_seed(7)
    with observing(classifier):
        torch.rand(100)
        torch.manual_seed(3)
    assert torch.equal(torch.rand(5), expected)


def test_looking_changes_no_parameter_buffer_or_gradient(classifier: Classifier) -> None:
    mixed(classifier)
    state = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    activations(classifier, torch.rand(4, 3, 8, 8), ["block1_conv1", "head"])
    assert all(torch.equal(tensor, state[name]) for name, tensor in classifier.state_dict().items())
    assert all(parameter.grad is None for parameter in classifier.parameters())


def test_gradients_of_images_can_be_taken_inside_inference_mode(classifier: Classifier) -> None:
    with torch.inference_mode(), observing(classifier), torch.enable_grad():
        images = torch.rand(1, 3, 8, 8).requires_grad_()
        (gradient,) = torch.autograd.grad(classifier(images).sum(), images)
    assert gradient.abs().sum() > 0


def test_the_callers_gradient_mode_comes_back(classifier: Classifier) -> None:
    with torch.no_grad():
        with observing(classifier):
            assert torch.is_grad_enabled()
        assert not torch.is_grad_enabled()


class Branching(nn.Module):
    """One convolution before its ReLU, one whose ReLU another takes first, one without, and all of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.relu = nn.Conv2d(3, 4, 3), nn.ReLU()
        self.second, self.other, self.third = nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)

    def forward(self, images: Tensor) -> Tensor:
        """Run the ReLU behind the second convolution on something else."""
        maps = self.relu(self.first(images))
        return self.third(self.relu(self.second(maps)) + self.other(2 * maps[:, :, 1:-1, 1:-1]))


@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-3)])
def test_what_is_looked_at_is_what_the_modules_put_out_whoever_rectifies_it(dtype, off):
    torch.manual_seed(0)
    network: Any = Branching().to(dtype).to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 20, 20).to(dtype).to(memory_format=torch.channels_last)
    modules = {"first": network.first, "second": network.second, "third": network.third}
    looked_at: list[Tensor] = []

    def look(maps: Tensor) -> tuple[Tensor, Tensor]:
        looked_at.append(maps)
        return maps, rectified_mean(maps)

    plain: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(lambda _m, _i, maps, name=name: plain.update({name: maps}))
        for name, module in modules.items()
    ]
    with torch.no_grad(), recording_outputs(network, modules, look) as finish:
        for _ in range(2):
            network(images)
            assert len(looked_at) == 1  # the first one's ReLU came next; the others wait
            assert looked_at[0] is plain["first"]
            seen = finish()
            for name, maps in plain.items():
                assert seen[name][0] is maps
                wanted = maps.double().clamp_min(0).mean((2, 3))
                assert torch.allclose(seen[name][1].double(), wanted, rtol=off, atol=1e-7)
            looked_at.clear()
    for handle in handles:
        handle.remove()
    assert not any(module._forward_hooks for module in network.modules())
