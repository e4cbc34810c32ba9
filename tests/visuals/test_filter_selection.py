"""Grids are ordered and framed by verdict."""

import numpy as np
import pytest
import torch

from filterscope.analysis.health.verdict import Verdict
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.visuals.activations import Activations
from filterscope.visuals.drawing.grid import BACKGROUND
from filterscope.visuals.filter_selection import judged_layer, proportional_sample, select_filters
from filterscope.visuals.filters import Filters
from filterscope.visuals.synthesis import Synthesis
from filterscope.visuals.visual import Examples, VisualState, render

LAYER = "block2_conv1"
VERDICTS = [
    *("dead", "noise", "useful", "idle", "useful", "duplicate"),
    *("unstructured", "noise", "unknown", "useful", "dead", "idle"),
]


def judged() -> VisualState:
    health = {LAYER: {"verdicts": VERDICTS, "measures": {"z": torch.arange(12.0)}}}
    return VisualState(store={"health": health})


def test_the_best_verdicts_come_first_and_then_the_most_structure(classifier: Classifier) -> None:
    selection = select_filters(classifier, LAYER, None, judged(), order="verdict")
    assert selection.channels == [9, 4, 2, 6, 8, 5, 11, 3, 7, 1, 10, 0]
    assert selection.verdicts[0] == "useful"
    assert selection.verdicts[-1] == "dead"


@pytest.mark.parametrize("count", range(7, 12))
def test_a_sample_has_every_verdict_and_the_requested_size(count: int) -> None:
    sample = proportional_sample(VERDICTS, list(range(12)), count)
    assert len(set(sample)) == count
    assert {VERDICTS[i] for i in sample} == set(Verdict)


def test_a_rare_verdict_does_not_displace_another_rare_one() -> None:
    verdicts = ["useful"] * 18 + ["idle", "dead"]
    assert sorted(verdicts[i] for i in proportional_sample(verdicts, [0.0] * 20, 7)) == [
        "dead",
        "idle",
        *["useful"] * 5,
    ]


def test_explicit_channels_are_ordered_but_not_replaced(classifier: Classifier) -> None:
    assert select_filters(classifier, LAYER, [0, 1, 2], judged(), order="verdict").channels == [2, 1, 0]


def test_the_order_by_verdict_needs_verdicts(classifier: Classifier, examples: Examples) -> None:
    with pytest.raises(UserError, match="no verdicts on block1_conv1 to order block1_conv1 by; choose health too"):
        Filters(order="verdict")(classifier, examples, VisualState())
    with pytest.raises(UserError, match=r"visuals.filters.order='best'; possible are number, verdict"):
        Filters(order="best")


def test_a_pool_has_the_verdicts_of_the_convolution_before_it(classifier: Classifier) -> None:
    assert judged_layer(classifier, "block2_pool") == LAYER
    assert judged_layer(classifier, LAYER) == LAYER


def test_every_grid_is_framed_in_the_colours_of_the_verdicts(classifier: Classifier, examples: Examples) -> None:
    from filterscope.analysis.synthesis import Recipe

    recipe = Recipe(size=24, steps=2)
    grids = (
        Filters(layers=[LAYER], order="verdict")(classifier, examples, judged()),
        Activations(layers=["block2_pool"], channels=7, order="verdict")(classifier, examples, judged()),
        Synthesis(recipe=recipe, layers=[LAYER], channels=7, order="verdict")(classifier, examples, judged()),
    )
    for (picture,) in (tuple(grid.values()) for grid in grids):
        colours = {tuple(colour) for colour in picture.pixels.reshape(-1, 3)}
        assert {verdict.colour for verdict in Verdict} <= colours


def test_frames_can_be_distinguished_by_red_green_blind_readers() -> None:
    # Linear RGB to the plane that remains to a deuteranope (Viénot, Brettel and Mollon 1999).
    remains = np.array([[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]])
    perceived = {verdict.value: remains @ (np.array(verdict.colour) / 255) ** 2.2 for verdict in Verdict}
    perceived["background"] = remains @ (np.array(BACKGROUND) / 255) ** 2.2
    names = list(perceived)
    apart = [np.linalg.norm(perceived[a] - perceived[b]) for i, a in enumerate(names) for b in names[:i]]
    assert min(apart) > 0.1


def test_synthesized_channels_stay_the_same_while_verdicts_change(classifier: Classifier) -> None:
    state = judged()
    state.epoch = 0
    first = select_filters(classifier, LAYER, 7, state, order="verdict", keep="synthesis")
    state.store["health"][LAYER]["verdicts"] = VERDICTS[::-1]
    later = select_filters(classifier, LAYER, 7, state, order="verdict", keep="synthesis")
    assert set(first.channels) == set(later.channels)
    assert first.verdicts != later.verdicts


def test_health_is_drawn_before_the_grids_that_show_its_verdicts(classifier: Classifier, examples: Examples) -> None:
    from filterscope.visuals.health.health import Health

    shown = render({"filters": Filters(order="verdict"), "health": Health()}, classifier, examples, VisualState())
    assert {"filters/block1_conv1", "health"} <= shown.keys()
    assert torch.is_grad_enabled()
