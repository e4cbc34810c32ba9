"""Filters, activations, responses and synthesis: one grid per layer."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from filterscope.analysis.synthesis import LayerStatistics, Recipe, SynthesisResult
from filterscope.errors import UserError
from filterscope.models.backbone import Backbone
from filterscope.models.classifier import Classifier
from filterscope.visuals.activations import Activations, most_varied
from filterscope.visuals.drawing.tiles import kernel_tiles
from filterscope.visuals.filter_selection import FilterSelection
from filterscope.visuals.filters import Filters, draw_filters
from filterscope.visuals.map_grid import draw_maps
from filterscope.visuals.responses import Responses
from filterscope.visuals.synthesis import Synthesis
from filterscope.visuals.trust import trust_captions, trust_sentences
from filterscope.visuals.visual import Examples, Visual, VisualState

RECIPE = Recipe(size=32, steps=6, objective="channel", precision="fp32")
NO_IMAGES = Examples(images=torch.empty(0, 3, 32, 32))


def test_filters_and_synthesis_draw_every_convolution_and_activations_the_block_ends(
    classifier: Classifier, examples: Examples
) -> None:
    state = VisualState(epoch=0)
    assert list(Filters()(classifier, examples, state)) == ["filters/block1_conv1", "filters/block2_conv1"]
    assert list(Activations()(classifier, examples, state)) == ["activations/block1_pool", "activations/block2_pool"]
    made = Synthesis(recipe=RECIPE, channels=2)(classifier, examples, state)
    assert list(made) == ["synthesis/block1_conv1", "synthesis/block2_conv1"]


@pytest.mark.parametrize(
    "visual",
    [
        Filters(layers=["block2_conv1"]),
        Activations(layers=["block2_conv1"]),
        Responses(layers=["block2_conv1"]),
        Synthesis(layers=["block2_conv1"], recipe=RECIPE, channels=2),
    ],
)
def test_every_picture_is_rgb_and_has_a_markdown_description(
    visual: Visual, classifier: Classifier, examples: Examples
) -> None:
    (picture,) = visual(classifier, examples, VisualState(epoch=2)).values()
    assert picture.pixels.dtype == np.uint8
    assert picture.pixels.shape[1:] == (1000, 3)
    assert picture.description.startswith("**block2_conv1**: ")


@pytest.mark.parametrize("visual", [Filters, Activations, Responses])
def test_unknown_layers_and_channels_are_errors_that_list_the_known_ones(
    visual: type, classifier: Classifier, examples: Examples
) -> None:
    with pytest.raises(UserError, match=r"unknown layer 'block9_conv1'.*this network has block1_conv1"):
        visual(layers=["block9_conv1"])(classifier, examples, VisualState())
    with pytest.raises(UserError, match="channel 12 of block2_conv1 does not exist; it has 0 to 11"):
        visual(layers=["block2_conv1"], channels=[12])(classifier, examples, VisualState())


@pytest.mark.parametrize("visual", [Activations(), Responses()])
def test_visuals_that_need_images_refuse_to_draw_without(visual: Visual, classifier: Classifier) -> None:
    assert visual.needs_images
    with pytest.raises(UserError):
        visual(classifier, NO_IMAGES, VisualState())


def test_frozen_layers_are_drawn_once(classifier: Classifier, examples: Examples) -> None:
    classifier.backbone.requires_grad_(False)
    for visual in (Filters(), Activations(), Responses(), Synthesis(recipe=RECIPE, channels=1)):
        state = VisualState(epoch=0)
        first = visual(classifier, examples, state)
        state.epoch = 1
        assert first
        assert visual(classifier, examples, state) == {}


def test_kernels_are_drawn_in_colour_grey_shared_or_as_points() -> None:
    for shape, kind in (
        ((4, 3, 5, 5), "colour"),
        ((4, 1, 5, 5), "grey"),
        ((4, 9, 3, 3), "shared"),
        ((4, 9, 1, 1), "points"),
    ):
        tiles, drawn = kernel_tiles(torch.randn(shape), 100)
        assert drawn == kind
        assert len(tiles) == 4
        assert all(max(tile.shape[:2]) <= 105 for tile in tiles)


def test_kernels_without_weights_are_drawn() -> None:
    for inputs in (1, 3, 16):
        assert (
            draw_filters(
                torch.zeros(2, inputs, 3, 3), FilterSelection(channels=[0, 1]), layer="x", total=2
            ).pixels.std()
            > 0
        )


def test_a_kernel_that_is_one_pattern_on_all_inputs_shows_this_pattern() -> None:
    pattern = torch.tensor([[1.0, 0.0, -1.0]] * 3)
    tiles, _ = kernel_tiles(pattern.expand(1, 8, 3, 3) * torch.rand(8).view(1, 8, 1, 1), 100)
    large = tiles[0][:, :69].astype(int)
    assert large[30, 10, 0] > large[30, 10, 2] + 50  # left positive, red
    assert large[30, 34].min() >= 240  # middle zero, white
    assert large[30, 60, 2] > large[30, 60, 0] + 50  # right negative, blue


def test_the_most_varied_channels_are_those_planted() -> None:
    maps = torch.rand(3, 20, 4, 4) * 0.01
    maps[:, 7] += torch.rand(3, 4, 4) * 5
    maps[:, 2] += torch.rand(3, 4, 4) * 3
    maps[:, 11] -= torch.rand(3, 4, 4) * 50  # a ReLU takes this one away
    assert most_varied(maps, 2).tolist() == [7, 2]


def test_the_columns_chosen_first_are_kept(classifier: Classifier, examples: Examples) -> None:
    state = VisualState(epoch=0)
    visual = Activations(channels=3)
    visual(classifier, examples, state)
    chosen = {layer: list(channels) for layer, channels in state.store["channels"].items()}
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.normal_()
    state.epoch = 1
    visual(classifier, examples, state)
    assert state.store["channels"] == chosen


def test_a_planted_map_above_one_is_brightest_where_it_is_largest() -> None:
    maps = torch.zeros(1, 1, 8, 8)
    maps[0, 0, 3, 4] = 300.0
    picture = draw_maps(torch.zeros(1, 3, 16, 16), maps, FilterSelection(channels=[0]), layer="x", total=1)
    yellow = (picture.pixels == [253, 231, 37]).all(axis=2)  # the end of viridis
    body = yellow[200:]
    rows, columns = np.nonzero(body)
    assert 0.8 < np.ptp(rows) / np.ptp(columns) < 1.25  # one square patch
    assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)


def test_maps_too_small_to_show_a_place_are_drawn_only_when_asked_for(
    classifier: Classifier, examples: Examples, caplog: pytest.LogCaptureFixture
) -> None:
    small = dataclasses.replace(examples, images=examples.images[..., :24, :24])  # maps of 6×6 and of 3×3 pixels
    with caplog.at_level("INFO"):
        assert set(Activations()(classifier, small, VisualState())) == {"activations/block1_pool"}
    assert "activations/block2_pool is left out: its maps have 3×3 pixels" in caplog.text
    assert set(Activations(layers=["block2_pool"])(classifier, small, VisualState())) == {"activations/block2_pool"}


def test_features_of_a_linear_are_drawn_as_bars(classifier: Classifier, examples: Examples) -> None:
    (picture,) = Activations(layers=["head"])(classifier, examples, VisualState()).values()
    assert "one bar per feature" in picture.description


def test_outputs_that_are_neither_maps_nor_features_are_refused() -> None:
    with pytest.raises(UserError, match="only maps and features can be drawn"):
        draw_maps(
            torch.zeros(1, 3, 8, 8), torch.zeros(1, 5, 7), FilterSelection(channels=[0]), layer="encoder", total=5
        )


def test_modules_without_known_channels_are_drawn() -> None:
    class Block(nn.Module):
        def __init__(self, before: int, after: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(before, after, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x).relu()

    network = nn.Sequential(Block(3, 4), Block(4, 6), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    backbone = Backbone(network, name="blocks", mean=[0.0] * 3, std=[1.0] * 3)
    classifier = Classifier(backbone, nn.Linear(6, 2), num_classes=2)
    pictures = Activations()(classifier, Examples(images=torch.rand(2, 3, 16, 16)), VisualState())
    assert list(pictures) == ["activations/0", "activations/1"]


def test_grey_images_are_drawn_by_all(grey_classifier: Classifier) -> None:
    examples = Examples(images=torch.rand(2, 1, 32, 32))
    for visual in (Filters(), Activations(), Responses(), Synthesis(recipe=RECIPE, channels=1)):
        assert visual(grey_classifier, examples, VisualState())


def test_without_training_synthesis_starts_from_noise_and_repeats_itself(classifier: Classifier) -> None:
    visual = Synthesis(recipe=RECIPE, layers=["block1_conv1"], channels=2)
    first, again = (visual(classifier, NO_IMAGES, state)["synthesis/block1_conv1"] for state in [VisualState()] * 2)
    assert (first.pixels == again.pixels).all()
    assert "no real images to compare with" in first.description


def test_trust_is_told_only_where_there_is_something_to_compare_with(
    classifier: Classifier, examples: Examples
) -> None:
    from filterscope.analysis.synthesis import measure_statistics, synthesize

    made = synthesize(classifier, "block2_conv1", [0, 1], recipe=RECIPE)
    assert all(lines[-1] in ("not compared", "did not converge") for lines in trust_captions(made, [0, 1]))
    statistics = measure_statistics(classifier, examples.images, ["block2_conv1"]).of("block2_conv1")
    for lines, converged in zip(trust_captions(made, [0, 1], statistics), made.converged.tolist(), strict=True):
        assert ("× best of 6" in lines[0]) == converged


def test_captions_say_in_words_how_strong_and_how_specific_a_picture_is() -> None:
    statistics = LayerStatistics.of_responses(torch.tensor([[1.0, 1.0, 0.0]]).repeat(300, 1))
    result = SynthesisResult(
        images=torch.zeros(4, 3, 8, 8), parameters=torch.zeros(4), curve=torch.zeros(1, 4),
        activation=torch.tensor([4.0, 0.96, 3.0, 2.0]), rank=torch.tensor([0, 2, 1, 0]),
        converged=torch.tensor([True, True, True, False]), responses=torch.zeros(4, 3),
        support=torch.tensor([0.9, 0.9, torch.nan, 0.9]), importance=torch.ones(4, 8, 8),
    )  # fmt: skip
    sentences = trust_sentences(result, [0, 1, 2, 0], statistics)
    assert sentences[0] == (
        "activates this filter 4.0× as strongly as any of 300 real images; "
        "no other filter of the layer reacts more strongly"
    )
    assert sentences[1] == (
        "activates this filter 0.9× as strongly as the best of 300 real images and more than 0% of them; "
        "2 other filters react more strongly"
    )
    assert sentences[2].startswith("activates this filter, which none of 300 real images does; 1 other filter reacts")
    assert sentences[3].startswith("did not converge; ")
    doubtful = dataclasses.replace(result, support=torch.full((4,), 1e-4))
    assert trust_captions(doubtful, [0, 1, 2, 0], statistics)[0] == ("do not trust", "4.0× best of 300")
    assert trust_captions(result, [0, 1, 2, 0], statistics)[2][0] == "active on 0 of 300"


def test_statistics_of_real_images_are_used_when_the_images_are_gone(
    classifier: Classifier, examples: Examples
) -> None:
    visual = Synthesis(recipe=RECIPE, layers=["block1_conv1"], channels=1)
    state = VisualState(epoch=0)
    visual(classifier, examples, state)
    later = VisualState(store=state.store)
    (picture,) = visual(classifier, NO_IMAGES, later).values()
    assert f"Compared with {len(examples)} real images" in picture.description
    with torch.no_grad():
        classifier.module_of("block1_conv1").weight.add_(0.1)
    (picture,) = visual(classifier, NO_IMAGES, later).values()
    assert "no real images to compare with" in picture.description
