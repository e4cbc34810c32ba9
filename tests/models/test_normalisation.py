"""Images are normalised by the published formula, whatever their layout, to the bit."""

import pytest
import torch
from torch import Tensor, nn

from filterscope.models.backbone import Backbone

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LAYOUTS = {"planes": torch.contiguous_format, "pixels": torch.channels_last}


class Same(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Conv2d(3, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        return images


def backbone(channels: int = 3) -> Backbone:
    return Backbone(Same(), name="same", image_size=8, mean=MEAN[:channels], std=STD[:channels])


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("shape", [(4, 3, 30, 20), (1, 3, 5, 5), (0, 3, 8, 8), (2, 3, 1, 9), (2, 3, 9, 1)])
def test_normalisation_follows_the_formula_and_keeps_the_memory_layout(
    shape: tuple[int, ...], layout: torch.memory_format
) -> None:
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=layout)
    before = images.clone()
    normal = backbone()(images)
    expected = (images - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    assert torch.equal(normal, expected)
    assert normal.stride() == expected.stride()
    assert torch.equal(images, before)


def test_grey_images_in_either_layout() -> None:
    images = torch.rand(2, 1, 6, 5).contiguous(memory_format=torch.channels_last)
    assert torch.equal(backbone(1)(images), (images - MEAN[0]) / STD[0])


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_gradients_reach_the_images(layout: torch.memory_format) -> None:
    images = torch.rand(2, 3, 6, 5).contiguous(memory_format=layout).requires_grad_()
    (gradient,) = torch.autograd.grad(backbone()(images).square().sum(), images)
    std = torch.tensor(STD).view(1, 3, 1, 1)
    assert torch.allclose(gradient, 2 * backbone()(images).detach() / std)
