"""Accentuation starts from the part of a real image that activates a filter most, and makes it activate more."""

from dataclasses import replace

import numpy as np
import torch

from filterscope.analysis.activations import activations
from filterscope.analysis.synthesis import Recipe, measure_statistics
from filterscope.analysis.synthesis.trust import mean_response
from filterscope.models.classifier import Classifier
from filterscope.visuals.accentuation import Accentuation, _draw, accentuate
from filterscope.visuals.drawing.grid import INK, VERMILION
from filterscope.visuals.visual import Examples, VisualState

LAYER = "block2_conv1"
RECIPE = Recipe(steps=20, learning_rate=0.05, precision="fp32")


def test_the_real_image_grows_towards_the_filter_and_stays_itself(classifier: Classifier, examples: Examples) -> None:
    known = measure_statistics(classifier, examples.images, ["block1_conv1", LAYER])
    channels = [c for c in range(12) if known.of(LAYER).largest[c] > 0][:3]
    made = accentuate(classifier, LAYER, channels, examples.images, recipe=RECIPE, statistics=known)
    for crop in made.crops:
        windows = examples.images.unfold(2, crop.shape[-1], 1).unfold(3, crop.shape[-1], 1)
        assert (windows.permute(0, 2, 3, 1, 4, 5) == crop).all(dim=(3, 4, 5)).any()
    before = mean_response(activations(classifier, made.crops, [LAYER])[LAYER])
    own = before[torch.arange(len(channels)), torch.tensor(channels)]
    assert (made.result.activation > own).all()
    assert (made.result.images - made.crops).abs().mean() < 0.25
    assert made.change.min() >= 0
    assert made.change.max() <= 1


def test_it_draws_every_convolution_from_a_recipe_of_any_size(classifier: Classifier, examples: Examples) -> None:
    drawn = Accentuation(recipe=Recipe(size=96), steps=2, channels=2, images=6)(classifier, examples, VisualState())
    assert list(drawn) == ["accentuation/block1_conv1", "accentuation/block2_conv1"]
    assert "what grew" in drawn["accentuation/block1_conv1"].description


def test_a_warning_is_written_in_the_colour_of_its_frame(classifier: Classifier, examples: Examples) -> None:
    known = measure_statistics(classifier, examples.images, ["block1_conv1", LAYER])
    made = accentuate(classifier, LAYER, [0], examples.images, recipe=RECIPE, statistics=known)
    failed = replace(made, result=replace(made.result, converged=torch.tensor([False])))
    below = _draw(failed, [0], LAYER, known, "").pixels[300:]  # where the captions are
    assert (below == np.array(VERMILION)).all(-1).any()
    assert not (below == np.array(INK)).all(-1).any()
