"""Grids ordered and framed by verdict."""

import numpy as np
import pytest
import torch

from filterscope.analysis.health.verdict import Verdict
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.visuals.activations import Activations
from filterscope.visuals.drawing.grid import BACKGROUND
from filterscope.visuals.filter_selection import fair_sample, judged_layer, select_filters
from filterscope.visuals.filters import Filters
from filterscope.visuals.synthesis import Synthesis
from filterscope.visuals.visual import Examples, VisualState, render

LAYER = "block2_conv1"
SAID = ["dead", "noise", "useful", "idle", "useful", "duplicate", "useful", "noise", "useful", "useful", "dead", "idle"]


def judged() -> VisualState:
    health = {LAYER: {"verdicts": SAID, "z": [float(i) for i in range(12)]}}
    return VisualState(store={"health": health})


def test_the_best_come_first_and_within_a_verdict_those_with_most_structure(classifier: Classifier) -> None:
    picked = select_filters(classifier, LAYER, None, judged(), order="verdict")
    assert picked.channels == [9, 8, 6, 4, 2, 5, 11, 3, 7, 1, 10, 0]
    assert picked.verdicts[0] == "useful"
    assert picked.verdicts[-1] == "dead"


@pytest.mark.parametrize("count", range(5, 12))
def test_a_sample_holds_every_verdict_and_as_many_filters_as_were_asked_for(count: int) -> None:
    sample = fair_sample(SAID, list(range(12)), count)
    assert len(set(sample)) == count
    assert {SAID[i] for i in sample} == set(Verdict)


def test_a_rare_verdict_does_not_cost_another_rare_one_its_place() -> None:
    said = ["useful"] * 18 + ["idle", "dead"]
    assert sorted(said[i] for i in fair_sample(said, [0.0] * 20, 7)) == ["dead", "idle", *["useful"] * 5]


def test_channels_given_by_number_are_ordered_but_not_exchanged(classifier: Classifier) -> None:
    assert select_filters(classifier, LAYER, [0, 1, 2], judged(), order="verdict").channels == [2, 1, 0]


def test_without_verdicts_the_order_is_refused_in_one_line(classifier: Classifier, examples: Examples) -> None:
    with pytest.raises(UserError, match="no verdicts on block1_conv1 to order block1_conv1 by; choose health too"):
        Filters(order="verdict")(classifier, examples, VisualState())
    with pytest.raises(UserError, match=r"visuals.filters.order='best'; possible are number, verdict"):
        Filters(order="best")


def test_a_pools_channels_are_those_of_the_convolution_before_it(classifier: Classifier) -> None:
    assert judged_layer(classifier, "block2_pool") == LAYER
    assert judged_layer(classifier, LAYER) == LAYER


def test_every_kind_of_grid_is_framed_in_the_colours_that_its_key_explains(
    classifier: Classifier, examples: Examples
) -> None:
    from filterscope.analysis.synthesis import Recipe

    recipe = Recipe(size=24, steps=2)
    grids = (
        Filters(layers=[LAYER], order="verdict")(classifier, examples, judged()),
        Activations(layers=["block2_pool"], channels=5, order="verdict")(classifier, examples, judged()),
        Synthesis(recipe=recipe, layers=[LAYER], channels=5, order="verdict")(classifier, examples, judged()),
    )
    for (picture,) in (tuple(grid.values()) for grid in grids):
        colours = {tuple(colour) for colour in picture.pixels.reshape(-1, 3)}
        assert {verdict.colour for verdict in Verdict} <= colours


def test_frames_can_be_told_apart_without_telling_red_from_green() -> None:
    # Linear RGB to the plane that remains to a deuteranope (Viénot, Brettel and Mollon 1999).
    remains = np.array([[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]])
    seen = {verdict.value: remains @ (np.array(verdict.colour) / 255) ** 2.2 for verdict in Verdict}
    seen["background"] = remains @ (np.array(BACKGROUND) / 255) ** 2.2
    names = list(seen)
    apart = [np.linalg.norm(seen[a] - seen[b]) for i, a in enumerate(names) for b in names[:i]]
    assert min(apart) > 0.1


def test_synthesized_channels_stay_the_same_over_a_training_while_verdicts_change(classifier: Classifier) -> None:
    state = judged()
    state.epoch = 0
    first = select_filters(classifier, LAYER, 5, state, order="verdict", keep="synthesis")
    state.store["health"][LAYER]["verdicts"] = SAID[::-1]
    later = select_filters(classifier, LAYER, 5, state, order="verdict", keep="synthesis")
    assert set(first.channels) == set(later.channels)
    assert first.verdicts != later.verdicts


def test_health_looks_before_those_that_show_its_verdicts(classifier: Classifier, examples: Examples) -> None:
    from filterscope.visuals.health.health import Health

    shown = render({"filters": Filters(order="verdict"), "health": Health()}, classifier, examples, VisualState())
    assert {"filters/block1_conv1", "health"} <= shown.keys()
    assert torch.is_grad_enabled()
