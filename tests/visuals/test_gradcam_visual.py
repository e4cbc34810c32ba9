"""Grad-CAM as a picture."""

import torch

from filterscope.models.classifier import Classifier
from filterscope.visuals.gradcam import GradCAM, overlaid
from filterscope.visuals.visual import Examples, VisualState


def test_every_example_is_drawn_beside_its_evidence(classifier: Classifier, examples: Examples) -> None:
    picture = GradCAM(images=4)(classifier, examples, VisualState())["gradcam/block2_conv1"]
    assert picture.pixels.shape[1] == 1000
    assert "Grad-CAM at **block2_conv1**" in picture.description


def test_an_image_is_brightest_where_the_evidence_lies_and_grey_where_there_is_none() -> None:
    values = torch.zeros(8, 8)
    values[2, 5] = 3.0
    drawn = overlaid(torch.full((3, 8, 8), 0.5), values)
    assert divmod(int(drawn.sum(0).argmax()), 8) == (2, 5)
    assert drawn[:, 0, 0].std() < drawn[:, 2, 5].std()
