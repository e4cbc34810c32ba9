import pytest
import torch

from filterscope.models import heads
from filterscope.models.backbone import small_cnn_backbone, torchvision_backbone


@pytest.fixture(scope="module")
def grey():
    torch.manual_seed(0)
    return heads.replace(small_cnn_backbone(in_channels=1, image_size=32), num_classes=4)


@pytest.fixture(scope="module")
def colour():
    torch.manual_seed(0)
    return heads.linear(torchvision_backbone(name="vgg11_bn", weights=None), num_classes=4)
