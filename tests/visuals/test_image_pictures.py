"""Predictions, examples and confusion: pictures of images and classes."""

import math

import pytest
import torch

from filterscope.analysis.activations import probabilities
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.visuals.confusion import accuracy_table, commonest_mistakes, confusion_picture
from filterscope.visuals.drawing.grid import BLUE, VERMILION
from filterscope.visuals.examples import Batch, Classes
from filterscope.visuals.predictions import Predictions, draw_predictions
from filterscope.visuals.visual import Examples, VisualState


def amount(pixels, colour: tuple[int, int, int]) -> int:
    return int((pixels == colour).all(axis=2).sum())


def test_right_predictions_are_blue_and_wrong_ones_orange() -> None:
    images, chances = torch.zeros(2, 3, 16, 16), torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    right = draw_predictions(images, chances, torch.tensor([0, 1]), ("a", "b")).pixels
    wrong = draw_predictions(images, chances, torch.tensor([1, 0]), ("a", "b")).pixels
    assert amount(right, BLUE) > 0 == amount(right, VERMILION)
    assert amount(wrong, VERMILION) > 0 == amount(wrong, BLUE)


def test_right_and_wrong_predictions_differ_without_colour_too() -> None:
    images, chances = torch.zeros(1, 3, 16, 16), torch.tensor([[0.9, 0.1]])
    corner = [
        draw_predictions(images, chances, torch.tensor([label]), ("a", "a")).pixels[100:220].min(axis=2) < 30
        for label in (0, 1)
    ]
    assert (corner[0] != corner[1]).sum() > 100  # ✓ and ✗


def test_predictions_without_labels_are_marked_neither_right_nor_wrong(
    classifier: Classifier, examples: Examples
) -> None:
    unknown = Examples(images=examples.images, class_names=examples.class_names)
    pixels = Predictions()(classifier, unknown, VisualState())["predictions/val"].pixels
    assert amount(pixels, BLUE) == amount(pixels, VERMILION) == 0


def test_probabilities_are_those_of_the_network_in_evaluation_mode(classifier: Classifier, examples: Examples) -> None:
    classifier.train()
    expected = classifier.eval()(examples.images).softmax(dim=1)
    classifier.train()
    torch.testing.assert_close(probabilities(classifier, examples.images), expected)
    assert classifier.training


def test_classes_shows_one_example_of_each(classifier: Classifier, examples: Examples) -> None:
    picture = Classes()(classifier, examples, VisualState())["examples/classes"]
    assert picture.description == "One image of each of 4 classes, with its name."
    fewer = Examples(images=examples.images[:2], labels=examples.labels[:2], class_names=examples.class_names)
    assert "2 of 4 classes" in Classes()(classifier, fewer, VisualState())["examples/classes"].description


def test_a_batch_of_unknown_classes_is_drawn_with_file_names(classifier: Classifier) -> None:
    examples = Examples(images=torch.rand(20, 3, 8, 8), names=tuple(f"{i}.jpg" for i in range(20)))
    assert Batch(columns=10)(classifier, examples, VisualState())["examples/batch"].pixels.shape[0] < 600


@pytest.mark.parametrize("visual", [Batch(), Predictions()])
def test_no_images_is_an_error(visual, classifier: Classifier) -> None:
    with pytest.raises(UserError, match="images"):
        visual(classifier, Examples(images=torch.empty(0, 3, 8, 8)), VisualState())


@pytest.mark.parametrize("classes", [2, 10, 20, 102])
def test_a_confusion_matrix_of_any_size_is_drawn(classes: int) -> None:
    counts = torch.diag(torch.arange(classes)) + 1
    assert confusion_picture(counts, ["a name"] * classes).pixels.shape[1] == 1000


def test_a_perfect_matrix_has_no_orange_and_a_hopeless_one_no_blue() -> None:
    perfect, hopeless = torch.eye(12).long() * 5, (1 - torch.eye(12)).long()
    assert amount(confusion_picture(perfect, []).pixels, VERMILION) == 0
    assert amount(confusion_picture(perfect, []).pixels, BLUE) > 0
    assert amount(confusion_picture(hopeless, []).pixels, BLUE) == 0


def test_commonest_mistakes_are_in_order_and_no_right_ones() -> None:
    counts = torch.tensor([[9, 2, 0], [5, 8, 0], [0, 1, 7]])
    assert commonest_mistakes(counts, 5) == [(5, 1, 0), (2, 0, 1), (1, 2, 1)]


def test_accuracy_per_class_is_computed_from_the_rows() -> None:
    table = accuracy_table(torch.tensor([[3, 1, 0], [0, 0, 0], [2, 2, 4]]), ["ant", "bee"])
    assert table.rows[0] == ("ant", 4, 3, 0.75, "bee", 1, 0.6, 6 / 9)
    assert table.rows[1][:3] == ("bee", 0, 0)
    assert math.isnan(table.rows[1][3])
    assert table.rows[2][:4] == ("class 2", 8, 4, 0.5)
    assert all(len(row) == len(table.columns) for row in table.rows)
