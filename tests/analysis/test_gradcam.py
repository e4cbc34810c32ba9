import pytest
import torch
from torch import nn

from filterscope.analysis.gradcam import grad_cam
from filterscope.errors import UserError
from filterscope.models.backbone import Backbone
from filterscope.models.classifier import Classifier

IMAGES = torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def pooled() -> Classifier:
    """Maps, their means, one Linear: for such a network Grad-CAM has a formula of its own (CAM, Zhou et al. 2016)."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    backbone = Backbone(network, name="pooled", mean=[0.5] * 3, std=[0.25] * 3, image_size=12)
    return Classifier(backbone, nn.Linear(5, 4), num_classes=4)


@pytest.mark.parametrize("frozen", [False, True])
def test_grad_cam_equals_the_class_activation_map_where_that_is_defined(pooled: Classifier, frozen: bool) -> None:
    pooled.requires_grad_(not frozen)
    classes = torch.tensor([2, 0, 3])
    maps = pooled.backbone.network[0]((IMAGES - 0.5) / 0.25)
    cam = torch.einsum("nk,nkhw->nhw", pooled.head.weight[classes], maps).relu() / 144  # of 12 × 12 places
    torch.testing.assert_close(grad_cam(pooled, IMAGES, classes, layer="block1_conv1"), cam.detach())


def test_grad_cam_leaves_the_network_unchanged(pooled: Classifier) -> None:
    pooled.train()
    grad_cam(pooled, IMAGES, torch.zeros(3, dtype=torch.long), layer="block1_conv1")
    assert pooled.training
    assert all(parameter.grad is None for parameter in pooled.parameters())
    assert not any(module._forward_hooks or module._backward_hooks for module in pooled.modules())


def test_a_layer_without_maps_is_refused(pooled: Classifier) -> None:
    with pytest.raises(UserError, match="Grad-CAM needs a layer that outputs feature maps, and head does not"):
        grad_cam(pooled, IMAGES, torch.zeros(3, dtype=torch.long), layer="head")
