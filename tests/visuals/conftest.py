import pytest
import torch
from torch import nn

from filterscope.models.backbone import Backbone
from filterscope.models.classifier import Classifier
from filterscope.visuals.visual import Examples


def network(in_channels: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, 8, 5, stride=2, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def classifier_of(in_channels: int) -> Classifier:
    torch.manual_seed(0)
    mean, std = [0.5] * in_channels, [0.25] * in_channels
    backbone = Backbone(network(in_channels), name="tiny", mean=mean, std=std)
    return Classifier(backbone, nn.Linear(12, 4), num_classes=4)


@pytest.fixture
def classifier() -> Classifier:
    return classifier_of(3)


@pytest.fixture
def grey_classifier() -> Classifier:
    return classifier_of(1)


@pytest.fixture
def examples() -> Examples:
    images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    names = ("ant", "bee", "cat", "hard-leaved pocket orchid")
    return Examples(images=images, labels=torch.tensor([0, 1, 2, 3, 0, 1]), class_names=names)
