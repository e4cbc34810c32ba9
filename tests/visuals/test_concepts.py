from dataclasses import replace

import pytest
import torch

from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.visuals.concepts import Concepts
from filterscope.visuals.filter_words import known_words
from filterscope.visuals.filters import Filters
from filterscope.visuals.output.outputs import Picture, Table
from filterscope.visuals.tuning import Tuning
from filterscope.visuals.visual import Examples, VisualState


@pytest.fixture
def many(examples: Examples) -> Examples:
    images = torch.rand(24, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    return replace(examples, images=images, labels=torch.arange(24) % 4)


def test_every_filter_has_a_row_and_a_sentence(classifier: Classifier, many: Examples) -> None:
    state = VisualState()
    shown = Concepts(layers=["block2_conv1"])(classifier, many, state)
    assert set(shown) == {"concepts", "concepts/block2_conv1"}
    table = shown["concepts"]
    assert isinstance(table, Table)
    assert len(table.rows) == 12
    assert all(len(row) == len(table.columns) for row in table.rows)
    words = known_words(state, "block2_conv1")
    assert words is not None
    assert all("AUC" in sentence for sentence in words.sentences)


def test_patches_of_images_without_labels_are_drawn_without_classes(classifier: Classifier, many: Examples) -> None:
    state = VisualState()
    shown = Concepts(layers=["block2_conv1"])(classifier, replace(many, labels=None), state)
    table, picture = shown["concepts"], shown["concepts/block2_conv1"]
    assert isinstance(table, Table)
    assert isinstance(picture, Picture)
    assert {row[3] for row in table.rows} == {""}
    assert known_words(state, "block2_conv1") is None


def test_too_few_images_are_an_error(classifier: Classifier, examples: Examples) -> None:
    with pytest.raises(UserError, match="at least 12 images; there are 6"):
        Concepts()(classifier, examples, VisualState())


def test_filters_are_captioned_and_described_with_the_words_of_other_visuals(
    classifier: Classifier, many: Examples
) -> None:
    state = VisualState()
    without = Filters(layers=["block1_conv1"])(classifier, many, state)["filters/block1_conv1"]
    Tuning(layers=["block1_conv1"])(classifier, many, state)
    picture = Filters(layers=["block1_conv1"])(classifier, many, state)["filters/block1_conv1"]
    words = known_words(state, "block1_conv1")
    assert isinstance(picture, Picture)
    assert words is not None
    assert all(sentence in picture.description for sentence in words.sentences)
    assert picture.pixels.shape[0] > without.pixels.shape[0]
