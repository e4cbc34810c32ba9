"""Accentuation starts from the real image that activates a filter most, and makes it activate more."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from filterscope.analysis.activations import activations
from filterscope.analysis.synthesis import Recipe, SynthesisResult, measure_statistics, synthesize_all
from filterscope.analysis.synthesis.trust import mean_response
from filterscope.analysis.top_patches import measure_responses
from filterscope.models.classifier import Classifier
from filterscope.visuals import accentuation
from filterscope.visuals.accentuation import Accentuated, Accentuation, accentuate
from filterscope.visuals.drawing.grid import INK, VERMILION
from filterscope.visuals.visual import Examples, VisualState

LAYER = "block2_conv1"
RECIPE = Recipe(steps=20, learning_rate=0.05, precision="fp32")


def made_of(classifier: Classifier, images: torch.Tensor, channels: list[int]) -> Accentuated:
    known = measure_statistics(classifier, images, ["block1_conv1", LAYER])
    top = measure_responses(classifier, images, [LAYER])[LAYER]
    return accentuate(classifier, LAYER, channels, images, top=top, recipe=RECIPE, statistics=known)


def test_the_best_real_image_grows_towards_the_filter_and_stays_itself(
    classifier: Classifier, examples: Examples
) -> None:
    responses = mean_response(activations(classifier, examples.images, [LAYER])[LAYER])
    channels = [c for c in range(12) if responses[:, c].max() > 0][:3]
    made = made_of(classifier, examples.images, channels)
    best = responses[:, channels].argmax(0)
    assert torch.equal(made.images, examples.images[best])
    assert (made.result.activation > responses[best, channels]).all()
    assert (made.result.images - made.images).abs().mean() < 0.25
    assert made.change.min() >= 0
    assert made.change.max() <= 1


def test_the_frame_holds_the_part_that_the_strongest_response_depends_on(
    classifier: Classifier, examples: Examples
) -> None:
    before = activations(classifier, examples.images, [LAYER])[LAYER].relu()
    channels = [c for c in range(12) if before[:, c].max() > 0][:3]
    made = made_of(classifier, examples.images, channels)
    for image, (top, left, side), channel in zip(made.images, made.places, channels, strict=True):
        peak = activations(classifier, image[None], [LAYER])[LAYER][0, channel].max()
        part = torch.zeros_like(image)
        part[:, top : top + side, left : left + side] = image[:, top : top + side, left : left + side]
        assert activations(classifier, part[None], [LAYER])[LAYER][0, channel].max() >= peak - 1e-5


def test_it_draws_every_convolution_from_a_recipe_of_any_size(classifier: Classifier, examples: Examples) -> None:
    drawn = Accentuation(recipe=Recipe(size=96), steps=2, channels=2, images=6)(classifier, examples, VisualState())
    assert list(drawn) == ["accentuation/block1_conv1", "accentuation/block2_conv1"]
    assert "what grew" in drawn["accentuation/block1_conv1"].description


def test_a_warning_is_written_in_the_colour_of_its_frame(
    classifier: Classifier, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*arguments: Any) -> list[SynthesisResult]:
        return [replace(made, converged=torch.zeros_like(made.converged)) for made in synthesize_all(*arguments)]

    monkeypatch.setattr(accentuation, "synthesize_all", failing)
    visual = Accentuation(layers=[LAYER], channels=1, steps=2, images=6)
    below = visual(classifier, examples, VisualState())[f"accentuation/{LAYER}"].pixels[300:]  # where the captions are
    assert (below == np.array(VERMILION)).all(-1).any()
    assert not (below == np.array(INK)).all(-1).any()
