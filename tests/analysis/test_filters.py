import numpy as np
import pytest
import torch
from torch import nn

from filterscope.analysis.filters import kernels, shared_patterns, strongest_inputs
from filterscope.errors import UserError
from filterscope.models.backbone import Backbone
from filterscope.models.classifier import Classifier


@pytest.fixture
def classifier() -> Classifier:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    backbone = Backbone(network, name="tiny", mean=[0.5] * 3, std=[0.5] * 3)
    return Classifier(backbone, nn.Linear(4, 2), num_classes=2)


def test_kernels_are_a_copy_of_the_weights(classifier: Classifier) -> None:
    weight = classifier.module_of("block1_conv1").weight
    copy = kernels(classifier, "block1_conv1")
    assert torch.equal(copy, weight)
    copy.zero_()
    assert weight.abs().min() > 0
    assert not copy.requires_grad


def test_the_error_for_a_layer_without_kernels_names_those_that_have_some(classifier: Classifier) -> None:
    with pytest.raises(UserError, match="'head' has no kernels; this network has block1_conv1"):
        kernels(classifier, "head")


def test_the_shared_pattern_is_numpy_s_first_singular_vector() -> None:
    weights = torch.randn(6, 20, 3, 5, generator=torch.Generator().manual_seed(0))
    patterns, shares = shared_patterns(weights)
    assert patterns.shape == (6, 3, 5)
    for weight, pattern, share in zip(weights, patterns, shares, strict=True):
        matrix = weight.flatten(1).double().numpy()
        left, values, right = np.linalg.svd(matrix - matrix.mean(1, keepdims=True), full_matrices=False)
        expected = right[0] * np.sign(left[:, 0].sum())
        np.testing.assert_allclose(pattern.flatten().numpy(), expected, atol=1e-5)
        assert share == pytest.approx(values[0] ** 2 / (values**2).sum(), rel=1e-5)


def test_a_pattern_on_all_inputs_is_found_with_its_sign_and_a_share_of_one() -> None:
    pattern = torch.tensor([[1.0, 2.0], [-3.5, 0.5]])
    weights = torch.tensor([0.5, 2.0, 0.1]).view(1, 3, 1, 1) * pattern
    found, share = shared_patterns(torch.cat([weights, -weights]))
    torch.testing.assert_close(found[0], pattern / pattern.norm())
    torch.testing.assert_close(found[1], -pattern / pattern.norm())
    torch.testing.assert_close(share, torch.ones(2))


def test_a_constant_kernel_has_no_pattern() -> None:
    for value in (0.0, 0.1):
        patterns, shares = shared_patterns(torch.full((2, 4, 3, 3), value))
        assert not patterns.any()
        assert not shares.any()


def test_a_mean_weight_does_not_hide_the_shape() -> None:
    shape = torch.tensor([[1.0, 0.0, -1.0]] * 3)
    (found,), _ = shared_patterns(0.1 * shape.expand(1, 5, 3, 3) - 7.0)
    torch.testing.assert_close(found, shape / shape.norm())


def test_the_strongest_inputs_are_those_planted() -> None:
    weights = torch.full((1, 10, 3, 3), 0.01)
    weights[0, 7], weights[0, 2] = -1.0, 0.5
    assert strongest_inputs(weights, 2).tolist() == [[7, 2]]
    assert strongest_inputs(weights[:, :2], 3).shape == (1, 2)
