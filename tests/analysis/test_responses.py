import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from filterscope.analysis.responses import raw_response, raw_responses, true_responses
from filterscope.data.images import to_grey
from filterscope.errors import UserError
from filterscope.models.backbone import Backbone
from filterscope.models.classifier import Classifier


@pytest.fixture
def classifier() -> Classifier:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 11, stride=4, padding=2),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 5, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    backbone = Backbone(network, name="tiny", mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.4])
    return Classifier(backbone, nn.Linear(5, 2), num_classes=2)


@pytest.mark.parametrize("size", [(3, 3), (5, 5), (11, 11), (2, 2), (4, 3), (1, 7)])
def test_the_raw_response_equals_cv2_filter2d(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    image, kernel = rng.random((28, 31), dtype=np.float32), rng.standard_normal(size).astype(np.float32)
    expected = cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101)
    response = raw_response(torch.from_numpy(image)[None], torch.from_numpy(kernel)[None])
    np.testing.assert_allclose(response.numpy(), expected, atol=1e-4)


def test_each_colour_channel_is_filtered_by_its_own_slice() -> None:
    rng = np.random.default_rng(1)
    image, kernel = rng.random((3, 20, 24), dtype=np.float32), rng.standard_normal((3, 5, 5)).astype(np.float32)
    expected = sum(cv2.filter2D(i, -1, k) for i, k in zip(image, kernel, strict=True))
    response = raw_response(torch.from_numpy(image), torch.from_numpy(kernel))
    np.testing.assert_allclose(response.numpy(), expected, atol=1e-4)


def test_a_small_image_is_mirrored_several_times_for_a_larger_kernel() -> None:
    rng = np.random.default_rng(2)
    image, kernel = rng.random((4, 6), dtype=np.float32), rng.standard_normal((11, 11)).astype(np.float32)
    padded = np.pad(image, 5, mode="reflect")
    expected = sum(padded[i : i + 4, j : j + 6] * kernel[i, j] for i in range(11) for j in range(11))
    response = raw_response(torch.from_numpy(image)[None], torch.from_numpy(kernel)[None])
    np.testing.assert_allclose(response.numpy(), expected, atol=1e-4)


def test_a_kernel_with_another_number_of_channels_is_refused() -> None:
    with pytest.raises(UserError, match="a kernel of 6 channels cannot be applied to an image of 3"):
        raw_response(torch.rand(3, 8, 8), torch.rand(6, 3, 3))


def test_the_true_response_has_stride_padding_bias_and_normalisation(classifier: Classifier) -> None:
    image = torch.rand(3, 40, 40)
    conv = classifier.module_of("conv_1")
    normalised = (image - classifier.backbone.mean[0]) / classifier.backbone.std[0]
    expected = F.conv2d(normalised[None], conv.weight, conv.bias, stride=4, padding=2)[0, [4, 1]]
    torch.testing.assert_close(true_responses(classifier, image, "conv_1", [4, 1]), expected.detach())


def test_the_true_response_of_a_deeper_layer_uses_all_inputs(classifier: Classifier) -> None:
    image = torch.rand(3, 40, 40)
    first, second = classifier.module_of("conv_1"), classifier.module_of("conv_2")
    normalised = (image - classifier.backbone.mean[0]) / classifier.backbone.std[0]
    maps = F.conv2d(normalised[None], first.weight, first.bias, stride=4, padding=2).relu()
    expected = F.conv2d(maps, second.weight, second.bias, padding=1)[0]
    torch.testing.assert_close(true_responses(classifier, image, "conv_2", list(range(5))), expected.detach())


def test_kernels_of_the_first_layer_are_applied_to_the_pixels(classifier: Classifier) -> None:
    image = torch.rand(3, 20, 20)
    kernel = classifier.module_of("conv_1").weight[2].detach().numpy()
    expected = sum(cv2.filter2D(image[c].numpy(), -1, kernel[c]) for c in range(3))
    np.testing.assert_allclose(raw_responses(classifier, image, "conv_1", [2])[0], expected, atol=1e-4)


def test_deeper_layers_apply_their_shared_pattern_to_the_grey_image(classifier: Classifier) -> None:
    image = torch.rand(3, 20, 20)
    kernel = classifier.module_of("conv_2").weight[3].detach()
    matrix = kernel.flatten(1).double().numpy()
    left, _, right = np.linalg.svd(matrix - matrix.mean(1, keepdims=True), full_matrices=False)
    pattern = (right[0] * np.sign(left[:, 0].sum())).reshape(3, 3)
    rgb = image.permute(1, 2, 0).numpy()
    expected = cv2.filter2D(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), -1, pattern)
    np.testing.assert_allclose(raw_responses(classifier, image, "conv_2", [3])[0], expected, atol=1e-4)


def test_grey_equals_opencv_s() -> None:
    image = torch.rand(3, 6, 7)
    expected = cv2.cvtColor(image.permute(1, 2, 0).numpy(), cv2.COLOR_RGB2GRAY)
    np.testing.assert_allclose(to_grey(image)[0], expected, atol=1e-5)
