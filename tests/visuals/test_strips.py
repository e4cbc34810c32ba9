"""Filters over the epochs: what is remembered is bounded, harmless to read, and drawn column by column."""

from pathlib import Path
from typing import Any

import pytest
import torch

from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.probes.synthesis import Recipe
from filterscope.visuals.health import Health
from filterscope.visuals.strips import Strips, most_crowded
from filterscope.visuals.synthesis import Synthesis
from filterscope.visuals.visual import Examples, Past, Picture, render

LAYER = "block1_conv1"


def trained(classifier: Classifier, examples: Examples, epochs: int, *more: Any) -> tuple[Past, dict[str, Any]]:
    past, shown = Past(), {}
    visuals = {str(i): visual for i, visual in enumerate((Strips(epochs=4, layers=[LAYER]), *more))}
    for past.epoch in range(epochs):
        shown = render(visuals, classifier, examples, past)
        with torch.no_grad():
            classifier.module_of(LAYER).weight.mul_(0.9).add_(0.02)
    return past, shown


def test_a_strip_shows_kernel_synthesis_response_and_verdict_of_every_epoch(
    classifier: Classifier, examples: Examples
) -> None:
    made = Synthesis(recipe=Recipe(size=24, steps=2), layers=[LAYER], channels=[5, 2, 1])
    past, shown = trained(classifier, examples, 3, Health(), made)
    known = past.store["strips"][LAYER]
    assert known["channels"] == [5, 2]
    assert sorted(known["epochs"]) == [0, 1, 2]
    for seen in known["epochs"].values():
        assert {"kernel", "synthesis", "response"} < seen.keys()
        assert all(seen["verdicts"])
    assert not torch.equal(known["epochs"][0]["kernel"], known["epochs"][2]["kernel"])
    assert isinstance(shown[f"strips/{LAYER}"], Picture)


def test_however_long_the_training_no_more_epochs_are_remembered(classifier: Classifier, examples: Examples) -> None:
    past, _ = trained(classifier, examples, 9)
    assert sorted(past.store["strips"][LAYER]["epochs"]) == [0, 4, 7, 8]


def test_the_epoch_that_goes_leaves_the_smallest_gap() -> None:
    assert most_crowded([0, 1, 2, 8]) == 1
    assert most_crowded([0, 4, 8, 9]) == 8


def test_what_is_remembered_can_be_read_harmlessly_and_drawn_again(
    classifier: Classifier, examples: Examples, tmp_path: Path
) -> None:
    past, shown = trained(classifier, examples, 3)
    torch.save(past.store, tmp_path / "past.pt")
    again = Past(store=torch.load(tmp_path / "past.pt", weights_only=True))
    drawn = Strips(layers=[LAYER])(classifier, examples, again)[f"strips/{LAYER}"]
    assert (drawn.pixels == shown[f"strips/{LAYER}"].pixels).all()


def test_a_frozen_layer_has_no_story(classifier: Classifier, examples: Examples) -> None:
    classifier.backbone.requires_grad_(False)
    assert Strips()(classifier, examples, Past(epoch=0)) == {}


def test_wrong_knobs_are_one_clear_line(classifier: Classifier, examples: Examples) -> None:
    with pytest.raises(UserError, match=r"visuals.strips.image=9: there are 6 examples"):
        Strips(image=9)(classifier, examples, Past(epoch=0))
    with pytest.raises(UserError, match="needs at least 2"):
        Strips(epochs=1)(classifier, examples, Past(epoch=0))
