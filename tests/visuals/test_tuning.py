from dataclasses import replace

import pytest

from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.visuals.filter_words import known_words
from filterscope.visuals.output.outputs import Picture, Table
from filterscope.visuals.tuning import Tuning
from filterscope.visuals.visual import Examples, VisualState


def test_two_convolutions_are_drawn_and_every_filter_has_a_row(classifier: Classifier, examples: Examples) -> None:
    state = VisualState()
    shown = Tuning()(classifier, examples, state)
    assert set(shown) == {
        "tuning",
        *(f"tuning/{n}{o}" for n in ("block1_conv1", "block2_conv1") for o in ("", "/overview")),
    }
    table, picture = shown["tuning"], shown["tuning/block1_conv1"]
    assert isinstance(table, Table)
    assert isinstance(picture, Picture)
    assert [row[:2] for row in table.rows[:8]] == [("block1_conv1", i) for i in range(8)]
    assert len(table.rows) == 8 + 12
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert picture.pixels.shape[1] == 1000
    words = known_words(state, "block1_conv1")
    assert words is not None
    assert len(words.sentences) == len(words.captions) == 8
    assert all("(fit " in each for each in words.sentences)
    assert words.sentences[0] in picture.description


def test_grey_networks_and_no_images_are_drawn(grey_classifier: Classifier, examples: Examples) -> None:
    none = replace(examples, images=examples.images[:0, :1], labels=None)
    shown = Tuning(layers=["block1_conv1"])(grey_classifier, none, VisualState())
    assert set(shown) == {"tuning", "tuning/block1_conv1", "tuning/block1_conv1/overview"}


def test_a_frozen_layer_is_drawn_once_and_stays_in_the_table(classifier: Classifier, examples: Examples) -> None:
    classifier.requires_grad_(False)
    state = VisualState(epoch=0)
    visual = Tuning(layers=["block1_conv1"])
    assert "tuning/block1_conv1" in visual(classifier, examples, state)
    state.epoch = 1
    later = visual(classifier, examples, state)
    assert set(later) == {"tuning"}
    assert len(later["tuning"].rows) == 8  # type: ignore[union-attr]


def test_a_layer_that_is_no_convolution_is_an_error(classifier: Classifier, examples: Examples) -> None:
    with pytest.raises(UserError, match="is no convolution"):
        Tuning(layers=["block1_pool"])(classifier, examples, VisualState())
