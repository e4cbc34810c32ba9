"""The importance of filters follows from derivatives, behind norm and activation, and predicts what ablation finds."""

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import kstest, spearmanr
from torch import Tensor, nn

from filterscope.analysis.health.causes import ablate_each
from filterscope.analysis.health.importance import LossChange, importance_of, loss_changes
from filterscope.analysis.health.input_weights import weighing
from filterscope.analysis.health.recorder import is_rectified, output_tap
from filterscope.errors import UserError
from filterscope.models.backbone import Backbone, small_cnn_backbone, torchvision_backbone
from filterscope.models.classifier import Classifier
from filterscope.models.heads import replace
from filterscope.models.layers import convolutions


def network() -> Classifier:
    torch.manual_seed(0)
    return replace(small_cnn_backbone(), num_classes=10).eval()


def images(count: int = 24) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 1, 28, 28, generator=generator), torch.arange(count) % 10


def outputs_of(*parts: nn.Module, size: int = 8) -> dict[str, tuple[nn.Module, bool]]:
    network = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    classifier = Classifier(
        Backbone(network, name="n", mean=[0], std=[1], image_size=size), nn.Identity(), num_classes=4
    )
    layers = convolutions(classifier.layers)
    return {name: (output_tap(classifier, name).module, is_rectified(classifier, name)) for name in layers}


def test_the_change_of_the_loss_is_minus_the_derivative_by_a_gate():
    classifier, (pixels, labels) = network(), images(6)
    found = loss_changes(classifier, pixels, labels, layers=["conv_1", "conv_2"], batch_size=4)
    gate = torch.ones(20, requires_grad=True)
    relu = output_tap(classifier, "conv_2").module
    handle = relu.register_forward_hook(lambda _m, _i, out: out * gate[:, None, None])
    for i in range(6):
        loss = F.cross_entropy(classifier(pixels[i : i + 1]), labels[i : i + 1])
        (slope,) = torch.autograd.grad(loss, gate)
        assert torch.allclose(found["conv_2"].first[i], -slope, atol=1e-5)
    handle.remove()
    assert found["conv_1"].first.shape == (6, 10)


def test_the_second_order_term_is_the_curvature_of_the_softmax_whatever_the_true_label():
    classifier, (pixels, _) = network(), images(1)
    classifier.head.weight.data *= 20  # far from equal probabilities
    gate = torch.ones(20, requires_grad=True)
    relu = output_tap(classifier, "conv_2").module
    handle = relu.register_forward_hook(lambda _m, _i, out: out * gate[:, None, None])
    logits = classifier(pixels)[0]
    slopes = torch.stack([torch.autograd.grad(logit, gate, retain_graph=True)[0] for logit in logits])
    handle.remove()
    p = logits.softmax(0).detach()
    curvature = (p @ slopes.square() - (p @ slopes).square()) / 2
    many = pixels.expand(1500, -1, -1, -1)
    found = loss_changes(classifier, many, torch.full((1500,), 7), layers=["conv_2"])["conv_2"].second
    assert (found.mean(0) - curvature).abs().max() < 0.1 * curvature.max()


def test_measuring_importance_leaves_weights_gradients_and_hooks_as_they_were():
    classifier = network().train()
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    loss_changes(classifier, *images(), layers=["conv_1"])
    assert all(torch.equal(before[name], tensor) for name, tensor in classifier.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in classifier.parameters())
    assert classifier.training
    assert not any(module._forward_hooks for module in classifier.modules())


def test_a_frozen_network_has_importance_too():
    classifier = network()
    expected = loss_changes(classifier, *images(), layers=["conv_1"])["conv_1"]
    classifier.requires_grad_(False)
    again = loss_changes(classifier, *images(), layers=["conv_1"])["conv_1"]
    assert torch.equal(again.first, expected.first)
    assert torch.equal(again.second, expected.second)


def test_importance_predicts_the_change_of_the_loss_on_other_images_of_a_trained_network():
    torch.manual_seed(0)
    classifier, labels = network(), torch.arange(400) % 10
    pixels = torch.rand(400, 1, 28, 28) * 0.5
    for i, label in enumerate(labels.tolist()):  # the class is the place of a bright square
        pixels[i, 0, 5 * (label // 4) + 4 :, 6 * (label % 4) + 2 :][:6, :6] += 0.5
    optimizer = torch.optim.Adam(classifier.parameters(), lr=3e-3)
    for batch in torch.arange(200).repeat(20).split(50):
        optimizer.zero_grad()
        F.cross_entropy(classifier(pixels[batch]), labels[batch]).backward()
        optimizer.step()
    judging, testing = slice(200, 300), slice(300, 400)
    changes = loss_changes(classifier, pixels[judging], labels[judging], layers=["conv_2"])["conv_2"]
    expected = importance_of(changes, labels[judging]).columns["importance_signed"]
    exact = ablate_each(classifier, pixels[testing], labels[testing], layer="conv_2").losses.mean(0)
    assert torch.corrcoef(torch.stack([expected.argsort().argsort(), exact.argsort().argsort()]).double())[0, 1] > 0.7
    assert importance_of(changes, labels[judging]).columns["needed"].sum() > 0


def test_a_mean_change_that_is_noise_does_not_hide_which_filters_matter():
    generator = torch.Generator().manual_seed(0)
    sizes, labels = torch.linspace(0.01, 0.1, 40), torch.arange(96) % 4
    second = (sizes.square() / 2).expand(96, 40)
    for sign in (-1, 1):  # of what all filters share by chance on these images
        noise = 0.5 * torch.randn(96, 40, generator=generator) + torch.randn(96, 1, generator=generator)
        noise += sign * 0.1 - noise.mean()
        expected = importance_of(LossChange(noise * sizes, second), labels)
        assert spearmanr(expected.columns["importance_signed"], sizes)[0] > 0.9
    certain = importance_of(LossChange(noise * 1e-3 - sizes, second), labels).columns["importance_signed"]
    assert torch.allclose(certain, sizes.double() ** 2 / 2 - sizes, atol=1e-3)


def test_classes_that_need_a_filter_are_named_first():
    labels = torch.arange(40) % 4
    changes = torch.zeros(40, 2)
    changes[labels == 3, 0], changes[labels == 1, 0] = 2.0, 1.0
    assert importance_of(LossChange(changes), labels).classes_hurt == [[3, 1], []]


def test_filters_that_together_hold_much_of_the_importance_are_needed_though_each_costs_little():
    labels = torch.arange(10)
    alike = importance_of(LossChange(torch.full((10, 50), 1e-4)), labels).columns["needed"]
    assert alike.sum() == 48  # two of fifty equal filters hold 4 % together
    unequal = torch.cat([torch.full((10, 1), 1.0), torch.full((10, 49), 1e-4)], dim=1)
    assert importance_of(LossChange(unequal), labels).columns["needed"].tolist() == [1] + [0] * 49


def test_filters_are_measured_behind_the_norm_and_activation_that_run_next():
    conv, norm, relu = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
    ((module, rectified),) = outputs_of(conv, norm, relu).values()
    assert module is relu
    assert rectified
    conv, norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
    ((module, rectified),) = outputs_of(conv, norm).values()
    assert module is norm
    assert not rectified
    silu = nn.SiLU()
    ((module, rectified),) = outputs_of(nn.Conv2d(1, 4, 3), silu).values()
    assert module is silu
    assert not rectified


def test_order_of_execution_counts_and_not_that_of_registration():
    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu, self.norm = nn.ReLU(), nn.BatchNorm2d(4)
            self.second, self.first = nn.Conv2d(4, 4, 3), nn.Conv2d(1, 4, 3)

        def forward(self, pixels: Tensor) -> Tensor:
            return F.relu(self.second(self.relu(self.norm(self.first(pixels)))), inplace=True)

    network = Shuffled()
    assert outputs_of(network) == {"0.first": (network.relu, True), "0.second": (network.second, True)}


def test_a_shared_relu_is_not_taken_and_a_residual_branch_is_not_rectified():
    classifier = replace(torchvision_backbone(name="resnet18", weights=None), num_classes=3)
    block = classifier.get_submodule("backbone.network.layer1.0")
    for layer, norm, rectified in (("layer1.0.conv1", block.bn1, True), ("layer1.0.conv2", block.bn2, False)):
        assert output_tap(classifier, layer).module is norm
        assert is_rectified(classifier, layer) == rectified


def test_random_kernels_weigh_their_inputs_evenly_and_scaled_inputs_are_found():
    kernels = torch.randn(2000, 24, 3, 3, generator=torch.Generator().manual_seed(0))
    even = weighing(kernels)
    assert kstest(even.p.numpy(), "uniform").pvalue > 0.01
    assert not even.uneven.any()
    kernels[:100, :4] *= 2.5
    assert weighing(kernels).uneven[:100].double().mean() > 0.95


@pytest.mark.parametrize("shape", [(8, 1, 3, 3), (8, 64, 1, 1), (8, 3, 3, 3)])
def test_depthwise_pointwise_and_colour_kernels_are_not_tested_for_their_inputs(shape):
    found = weighing(torch.randn(shape))
    assert not found.testable
    assert not found.uneven.any()


def test_wrong_input_is_one_clear_line():
    classifier, (pixels, labels) = network(), images(4)
    with pytest.raises(UserError, match="importance needs images with labels: got 0 images and 4 labels"):
        loss_changes(classifier, pixels[:0], labels, layers=["conv_1"])
    with pytest.raises(UserError, match="'fc1' has no kernels"):
        loss_changes(classifier, pixels, labels, layers=["fc1"])
