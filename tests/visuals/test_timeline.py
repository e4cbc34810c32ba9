"""The timeline keeps a bounded number of epochs, can be read safely, and is drawn column by column."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from filterscope.analysis.health.verdict import Verdict
from filterscope.analysis.synthesis import Recipe
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.visuals.health.health import Health
from filterscope.visuals.history import thin_out
from filterscope.visuals.output.outputs import Picture
from filterscope.visuals.synthesis import Synthesis
from filterscope.visuals.timeline import CARD, Timeline, draw_timeline
from filterscope.visuals.visual import Examples, VisualState, render

LAYER = "block1_conv1"


def trained(classifier: Classifier, examples: Examples, epochs: int, *more: Any) -> tuple[VisualState, dict[str, Any]]:
    state, shown = VisualState(), {}
    visuals = {str(i): visual for i, visual in enumerate((Timeline(epochs=4, layers=[LAYER]), *more))}
    for state.epoch in range(epochs):
        shown = render(visuals, classifier, examples, state)
        with torch.no_grad():
            classifier.module_of(LAYER).weight.mul_(0.9).add_(0.02)
    return state, shown


def test_it_shows_kernel_synthesis_response_and_verdict_of_every_epoch(
    classifier: Classifier, examples: Examples
) -> None:
    made = Synthesis(recipe=Recipe(size=24, steps=2), layers=[LAYER], channels=[5, 2, 1])
    state, shown = trained(classifier, examples, 3, Health(), made)
    known = state.store["timeline"][LAYER]
    assert known["channels"] == [5, 2]
    assert sorted(known["epochs"]) == [0, 1, 2]
    for record in known["epochs"].values():
        assert {"kernel", "synthesis", "response"} < record.keys()
        assert all(record["verdicts"])
    assert not torch.equal(known["epochs"][0]["kernel"], known["epochs"][2]["kernel"])
    assert isinstance(shown[f"timeline/{LAYER}"], Picture)


def test_a_training_draws_one_card_an_epoch_and_the_timelines_when_it_has_ended(
    classifier: Classifier, examples: Examples
) -> None:
    visual, state, cards = {"timeline": Timeline()}, VisualState(epoch_images=9), []
    for state.epoch in range(2):
        shown = render(visual, classifier, examples, state)
        assert set(shown) == {CARD}
        cards.append(shown[CARD])
        with torch.no_grad():
            classifier.module_of(LAYER).weight.neg_()
    assert cards[0].pixels.shape[1] >= 1.5 * cards[0].pixels.shape[0]  # wide, as TensorBoard's cards are
    assert (cards[0].pixels != cards[1].pixels).any()
    state.ended = True
    assert set(render(visual, classifier, examples, state)) == {"timeline/block1_conv1", "timeline/block2_conv1"}


def test_the_card_shows_a_layer_that_was_frozen_before_the_newest_epoch(
    classifier: Classifier, examples: Examples
) -> None:
    made = Synthesis(recipe=Recipe(size=24, steps=2), layers=["block2_conv1"], channels=[2, 1])
    visuals, state = {"timeline": Timeline(), "synthesis": made}, VisualState()
    for state.epoch in range(2):
        assert CARD in render(visuals, classifier, examples, state)
        classifier.module_of(LAYER).requires_grad_(False)
    assert sorted(state.store["timeline"][LAYER]["epochs"]) == [0]
    state.epoch = None
    assert CARD in render(visuals, classifier, examples, state)


def test_a_long_training_keeps_no_more_epochs(classifier: Classifier, examples: Examples) -> None:
    state, _ = trained(classifier, examples, 9)
    assert sorted(state.store["timeline"][LAYER]["epochs"]) == [0, 4, 7, 8]


@pytest.mark.parametrize(("epochs", "kept"), [([0, 1, 2, 8], [0, 2, 8]), ([0, 4, 8, 9], [0, 4, 9])])
def test_the_deleted_epoch_leaves_the_smallest_gap(epochs: list[int], kept: list[int]) -> None:
    records = dict.fromkeys(epochs)
    thin_out(records, 3)
    assert list(records) == kept


def test_records_can_be_loaded_with_weights_only_and_drawn_again(
    classifier: Classifier, examples: Examples, tmp_path: Path
) -> None:
    state, shown = trained(classifier, examples, 3)
    torch.save(state.store, tmp_path / "past.pt")
    again = VisualState(store=torch.load(tmp_path / "past.pt", weights_only=True))
    drawn = Timeline(layers=[LAYER])(classifier, examples, again)[f"timeline/{LAYER}"]
    assert (drawn.pixels == shown[f"timeline/{LAYER}"].pixels).all()


def test_a_frozen_layer_has_no_timeline(classifier: Classifier, examples: Examples) -> None:
    classifier.backbone.requires_grad_(False)
    assert Timeline()(classifier, examples, VisualState(epoch=0)) == {}


def test_wrong_options_are_clear_errors(classifier: Classifier, examples: Examples) -> None:
    with pytest.raises(UserError, match=r"visuals.timeline.image=9: there are 6 examples"):
        Timeline(image=9)(classifier, examples, VisualState(epoch=0))
    with pytest.raises(UserError, match=r"Timeline\.epochs=1: must be an integer of at least 2"):
        Timeline(epochs=1)(classifier, examples, VisualState(epoch=0))


def test_the_place_of_an_image_that_was_not_synthesized_has_no_frame() -> None:
    def record(**tiles: torch.Tensor) -> dict[str, Any]:
        kernel = torch.zeros(1, 88, 88, 3, dtype=torch.uint8)
        about = {"verdicts": ["useful"], "importance": [], "words": [[]], "sentences": [""]}
        return {**about, "kernel": kernel, "response": kernel, **tiles}

    def framed(*records: dict[str, Any]) -> int:
        drawn = draw_timeline({"channels": [0], "epochs": dict(enumerate(records))}, LAYER, torch.zeros(3, 8, 8))
        return int((drawn.pixels == np.array(Verdict.USEFUL.colour)).all(2).sum())

    made = record(synthesis=torch.zeros(1, 88, 88, 3, dtype=torch.uint8))
    assert framed(made, record()) < framed(made, made)
