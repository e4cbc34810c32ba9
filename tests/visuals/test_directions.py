"""Pictures of directions in channel space."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from filterscope.analysis.activations import activations
from filterscope.analysis.synthesis import (
    Job,
    Recipe,
    measure_statistics,
    start_from,
    synthesize,
    synthesize_all,
)
from filterscope.analysis.synthesis.trust import mean_along
from filterscope.config import factory
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.visuals.directions import Directions, _name
from filterscope.visuals.visual import Examples, VisualState

RECIPE = Recipe(size=24, steps=12, precision="fp32", jitter=0, scale=0, rotate=0)
LAYER = "block2_conv1"


def test_the_mean_along_directions_is_that_of_their_rectified_component() -> None:
    maps, directions = torch.randn(2, 5, 3, 4), torch.randn(3, 5)
    unit = directions / directions.norm(dim=1, keepdim=True)
    expected = torch.stack([F.relu(F.conv2d(maps, d.view(1, 5, 1, 1))).mean(dim=(1, 2, 3)) for d in unit], dim=1)
    assert torch.allclose(mean_along(maps, directions), expected, atol=1e-6)


@pytest.mark.parametrize("layer", [LAYER, "head"])
def test_a_picture_of_a_direction_increases_the_mean_along_it(classifier: Classifier, layer: str) -> None:
    directions = torch.randn(3, 12 if layer == LAYER else 4, generator=torch.Generator().manual_seed(0))
    (made,) = synthesize_all(classifier, [Job(layer=layer, channels=(0, 2), recipe=RECIPE, directions=directions)])
    along = mean_along(activations(classifier, made.images, [layer])[layer], directions)
    assert torch.allclose(made.responses, along, atol=1e-4)
    assert torch.allclose(made.activation, along[[0, 1], [0, 2]], atol=1e-4)
    assert made.converged.all()


def test_a_direction_along_one_class_makes_the_picture_of_its_logit(classifier: Classifier) -> None:
    noise = torch.rand(1, 3, RECIPE.size, RECIPE.size, generator=torch.Generator().manual_seed(0))
    start = start_from(noise, recipe=RECIPE)
    job = Job(layer="head", channels=(0,), recipe=RECIPE, directions=2 * torch.eye(4)[[1]], start=start)
    (along,) = synthesize_all(classifier, [job])
    logit = synthesize(classifier, "head", [1], recipe=replace(RECIPE, objective="logit"), start=start)
    assert float(along.activation[0]) == pytest.approx(float(logit.activation[0]), rel=1e-4)


def test_directions_are_compared_with_real_images_and_cached(
    classifier: Classifier, examples: Examples, tmp_path: Path
) -> None:
    visual = Directions(directions=[{0: 1.0, 1: 1.0}, {0: 1.0, 1: -1.0}], recipe=RECIPE, cache=str(tmp_path))
    (picture,) = visual(classifier, examples, VisualState()).values()
    assert "all 2 directions" in picture.description
    assert f"Compared with {len(examples)} real images" in picture.description
    assert len(list(tmp_path.glob("*.npz"))) == 2
    other = Directions(directions=[{0: 1.0, 2: 1.0}, {0: 1.0, 1: -1.0}], recipe=RECIPE, cache=str(tmp_path))
    other(classifier, examples, VisualState())
    assert len(list(tmp_path.glob("*.npz"))) == 4


def test_statistics_of_directions_are_of_directions(classifier: Classifier, examples: Examples) -> None:
    directions = torch.randn(2, 12)
    known = measure_statistics(classifier, examples.images, [LAYER], directions=directions).of(LAYER)
    along = mean_along(activations(classifier, examples.images, [LAYER])[LAYER], directions)
    assert torch.allclose(known.largest, along.max(dim=0).values, atol=1e-6)


def test_a_direction_of_an_unknown_channel_is_refused(classifier: Classifier, examples: Examples) -> None:
    with pytest.raises(UserError, match="channel 99 of block2_conv1 does not exist; it has 0 to 11"):
        Directions(directions=[{99: 1.0}], recipe=RECIPE)(classifier, examples, VisualState())


def test_directions_are_chosen_on_the_command_line(composed: Callable[..., dict[str, Any]]) -> None:
    words = ("visuals=directions", "visuals.directions.directions=[{3: 1.0, 17: -0.5}]")
    visual = factory.build_visuals(composed(*words, config="visualize"))["directions"]
    assert isinstance(visual, Directions)
    assert visual.directions == [{3: 1.0, 17: -0.5}]


@pytest.mark.parametrize(("weights", "name"), [({3: 1.0, 17: -0.5}, "3 −0.5·17"), ({0: -1.0, 2: 2.0}, "−0 +2·2")])
def test_a_direction_is_named_by_its_channels(weights: dict[int, float], name: str) -> None:
    assert _name(weights) == name


@pytest.mark.parametrize("directions", [[], [{}], [{1: 1.0}, {3: 0.0}]])
def test_a_direction_without_weights_is_refused(directions: list[dict[int, float]]) -> None:
    with pytest.raises(UserError, match=r"visuals\.directions\.directions"):
        Directions(directions=directions)
