"""Observing a network leaves its flags, hooks, weights and the random numbers as they were."""

import pytest
import torch
from torch import nn

from filterscope.analysis.activations import activations
from filterscope.analysis.hooks import Tap, observing, recording, tapping
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


def test_existing_hooks_stay(classifier: Classifier) -> None:
    seen: list[int] = []
    handle = classifier.head.register_forward_hook(lambda *_: seen.append(1))
    activations(classifier, torch.rand(1, 3, 8, 8), ["head"])
    assert hooks(classifier) == 1
    assert seen == [1]
    handle.remove()


def test_observing_does_not_change_later_random_numbers(classifier: Classifier) -> None:
    torch.manual_seed(7)
    expected = torch.rand(5)
    torch.manual_seed(7)
    with observing(classifier):
        torch.rand(100)
        torch.manual_seed(3)
    assert torch.equal(torch.rand(5), expected)


def test_observing_changes_no_parameter_buffer_or_gradient(classifier: Classifier) -> None:
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


def test_the_gradient_mode_of_the_caller_is_restored(classifier: Classifier) -> None:
    with torch.no_grad():
        with observing(classifier):
            assert torch.is_grad_enabled()
        assert not torch.is_grad_enabled()


def test_each_forward_pass_records_the_reduced_outputs_anew(classifier: Classifier) -> None:
    taps = {"conv": Tap(classifier.backbone.network[0]), "head": Tap(classifier.head)}
    with torch.no_grad(), recording(classifier, taps, lambda output: output.sum()) as recorded:
        for value in (0.0, 1.0):
            images = torch.full((2, 3, 8, 8), value)
            logits = classifier(images)
            assert recorded.keys() == {"conv", "head"}
            assert recorded["head"] == logits.sum()
    assert hooks(classifier) == 0
