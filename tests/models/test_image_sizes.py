"""The accepted image sizes are found without computing anything, and errors name them."""

import time

import pytest
import torch
import torchvision
from torch import nn

from filterscope.errors import UserError
from filterscope.models import heads
from filterscope.models.backbone import Backbone, small_cnn_backbone, torchvision_backbone
from filterscope.models.classifier import Classifier
from filterscope.models.weights import on_meta_device


def classifier_of(name: str):
    with on_meta_device():
        return heads.replace(torchvision_backbone(name=name, weights=None), num_classes=7)


@pytest.mark.parametrize(("name", "smallest"), [("alexnet", 63), ("vgg16", 32), ("inception_v3", 75)])
def test_the_error_names_the_smallest_accepted_size(name, smallest):
    classifier = classifier_of(name)
    classifier.check_image_size(smallest)
    with pytest.raises(UserError, match=rf"cannot pass through {name}; the smallest it takes is {smallest}$"):
        classifier.check_image_size(smallest - 1)


def test_the_real_network_accepts_the_smallest_size():
    network = torchvision.models.alexnet(weights=None).eval()
    with torch.no_grad():
        assert network(torch.rand(1, 3, 63, 63)).shape == (1, 1000)
        with pytest.raises(RuntimeError):
            network(torch.rand(1, 3, 62, 62))


def test_the_error_names_the_only_accepted_size():
    with pytest.raises(UserError, match=r"pass through vit_b_32; it takes 224$"):
        classifier_of("vit_b_32").check_image_size(256)


def test_the_error_names_multiples_where_only_those_are_accepted():
    class Strict(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, images):
            if images.shape[-1] % 32:
                raise ValueError("images must be multiples of 32")
            return self.conv(images).mean((2, 3))

    backbone = Backbone(Strict(), name="strict", mean=[0] * 3, std=[1] * 3)
    classifier = Classifier(backbone, nn.Identity(), num_classes=4)
    with pytest.raises(UserError, match=r"pass through strict; it takes multiples of 32, such as 192, 224, 256$"):
        classifier.check_image_size(200)


def test_small_cnn_accepts_the_size_it_was_built_for():
    classifier = heads.replace(small_cnn_backbone(image_size=28), num_classes=10)
    classifier.check_image_size(28)
    with pytest.raises(UserError, match=r"pass through small_cnn; it takes 26 to 29$"):
        classifier.check_image_size(64)
    with pytest.raises(UserError, match="the smallest it takes is 10"):
        small_cnn_backbone(image_size=9)
    heads.replace(small_cnn_backbone(image_size=10), num_classes=10).check_image_size(10)


def test_checking_is_quick_and_leaves_the_network_as_it_was():
    classifier = heads.replace(torchvision_backbone(name="alexnet", weights=None), num_classes=7)
    classifier.train()
    classifier.backbone.network.features.eval()
    flags = [module.training for module in classifier.modules()]
    tensors = [*classifier.parameters(), *classifier.buffers()]
    random = torch.get_rng_state()
    start = time.perf_counter()
    with pytest.raises(UserError):
        classifier.check_image_size(20)
    assert time.perf_counter() - start < 1
    assert [module.training for module in classifier.modules()] == flags
    assert all(a is b for a, b in zip(tensors, [*classifier.parameters(), *classifier.buffers()], strict=True))
    assert not any(module._forward_hooks for module in classifier.modules())
    assert torch.equal(torch.get_rng_state(), random)
