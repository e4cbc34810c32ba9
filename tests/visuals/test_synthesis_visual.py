"""The synthesis visual: its grid, its comparison with real images, and what it keeps over a training."""

import copy
import dataclasses
import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from filterscope.analysis.synthesis import Recipe, measure_statistics, renderer
from filterscope.analysis.synthesis.parameterization import Parameterization
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.visuals.progress import progress_bar
from filterscope.visuals.synthesis import TILE, Synthesis
from filterscope.visuals.trust import real_statistics
from filterscope.visuals.visual import Examples, VisualState, recording_validation

RECIPE = Recipe(size=24, steps=4, objective="channel", precision="fp32")
LAYER = "block2_conv1"


def visual(**options: object) -> Synthesis:
    return Synthesis(**{"recipe": RECIPE, "layers": [LAYER], "channels": 2, **options})  # type: ignore[arg-type]


def test_samples_patches_and_the_untrained_picture_form_a_row(classifier: Classifier, examples: Examples) -> None:
    alone = visual()(classifier, examples, VisualState())[f"synthesis/{LAYER}"]
    row = visual(samples=2, patches=2, untrained=True)(classifier, examples, VisualState())[f"synthesis/{LAYER}"]
    assert row.pixels.shape[0] > alone.pixels.shape[0]
    assert "*real*" in row.description
    assert "*untrained*" in row.description
    assert "*real*" not in alone.description


def test_the_untrained_picture_is_made_once_in_a_training(
    classifier: Classifier, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    whole = renderer.LayerRenderer.render

    def counted(self: renderer.LayerRenderer, indices: list[int], *args: object, **options: object) -> object:
        made.append(len(indices))
        return whole(self, indices, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(renderer.LayerRenderer, "render", counted)
    state = VisualState()
    counts = []
    for state.epoch in range(3):
        visual(untrained=True)(classifier, examples, state)
        counts.append(sum(made))
        with torch.no_grad():
            classifier.module_of(LAYER).weight.mul_(1.1)  # type: ignore[operator, union-attr]
    assert counts == [4, 6, 8]


def test_classes_are_drawn_under_their_names(classifier: Classifier, examples: Examples) -> None:
    classifier.class_names = examples.class_names
    named = visual(layers=["head"])(classifier, examples, VisualState())["synthesis/head"]
    classifier.class_names = ()
    numbered = visual(layers=["head"])(classifier, examples, VisualState())["synthesis/head"]
    assert (named.pixels != numbered.pixels).any()


def test_every_sample_continues_from_its_own_parameters(classifier: Classifier, examples: Examples) -> None:
    state = VisualState(epoch=0)
    still = visual(samples=2, recipe=Recipe(size=24, steps=4, learning_rate=0.0, precision="fp32", objective="channel"))
    still(classifier, examples, state)
    left = state.store["synthesis"][LAYER]
    with torch.no_grad():
        classifier.module_of(LAYER).weight.mul_(1.1)  # type: ignore[operator, union-attr]
    state.epoch = 1
    still(classifier, examples, state)
    assert torch.equal(state.store["synthesis"][LAYER]["parameters"], left["parameters"])
    assert len(left["parameters"]) == 4
    assert len(left["tiles"]) == 2  # timelines show the first sample


def test_stored_parameters_take_half_the_bytes_and_look_the_same(classifier: Classifier, examples: Examples) -> None:
    state, recipe = VisualState(epoch=0), Recipe(size=TILE, steps=40, precision="fp32")
    visual(recipe=recipe)(classifier, examples, state)
    left = state.store["synthesis"][LAYER]
    assert left["parameters"].dtype == torch.float16
    assert left["parameters"].float().abs().max() > 1
    images = Parameterization(recipe=recipe, channels=3).images(left["parameters"].float())
    shades = (images * 255).permute(0, 2, 3, 1) - left["tiles"].float()
    assert shades.abs().max() <= 1.0  # half of that is rounding to whole shades


def test_the_last_epoch_starts_from_the_first_noise(classifier: Classifier, examples: Examples) -> None:
    state = VisualState(epoch=0)
    drawn = visual(every=1)
    drawn(classifier, examples, state)
    with torch.no_grad():
        classifier.module_of(LAYER).weight.mul_(1.1)  # type: ignore[operator, union-attr]
    fresh = VisualState(epoch=0)
    drawn(classifier, examples, fresh)
    state.epoch, state.last = 3, True
    drawn(classifier, examples, state)
    ends = [each.store["synthesis"][LAYER]["parameters"] for each in (state, fresh)]
    assert torch.equal(*ends)


def test_outdated_pictures_get_more_steps(classifier: Classifier, examples: Examples) -> None:
    steps = []
    for sign in (1.0, -1.0):
        state = VisualState(epoch=0)
        network = copy.deepcopy(classifier)
        strong = visual(recipe=dataclasses.replace(RECIPE, steps=60, learning_rate=0.2), steps=3)
        strong(network, examples, state)
        with torch.no_grad():
            network.module_of(LAYER).weight.mul_(sign)  # type: ignore[operator, union-attr]
        state.epoch = 1
        strong(network, examples, state)
        steps.append(strong._continuing_recipe(LAYER, state).steps)
    assert steps == [3, 24]


def test_pictures_are_compared_with_the_whole_validation_pass(classifier: Classifier, examples: Examples) -> None:
    seen = torch.rand(40, 3, 32, 32)
    state = VisualState(epoch=0)
    with recording_validation({"synthesis": visual()}, classifier, state) as take, torch.no_grad():
        for batch in torch.split(seen, 16):
            classifier.eval()(batch)
            take(None)
    (picture,) = visual()(classifier, examples, state).values()
    assert "Compared with 40 real images" in picture.description
    state.gathered.clear()
    known = real_statistics(classifier, [LAYER], examples, state).of(LAYER)
    assert torch.allclose(known.largest, measure_statistics(classifier, seen, [LAYER]).of(LAYER).largest, atol=1e-5)


def test_finished_pictures_are_cached_outside_training_only(
    classifier: Classifier, examples: Examples, tmp_path: Path
) -> None:
    keeping = visual(cache=str(tmp_path))
    keeping(classifier, examples, VisualState(epoch=0))
    assert not list(tmp_path.iterdir())
    first = keeping(classifier, examples, VisualState())
    assert len(list(tmp_path.iterdir())) == 2
    again = keeping(classifier, examples, VisualState())
    assert (first[f"synthesis/{LAYER}"].pixels == again[f"synthesis/{LAYER}"].pixels).all()


def test_a_progress_bar_shows_layer_and_estimate_on_a_terminal_outside_training() -> None:
    text = io.StringIO()
    with progress_bar("synthesis", VisualState(), Console(file=text, force_terminal=True, width=100)) as told:
        assert told is not None
        told("block5_conv3", 0.5)
    assert "synthesis block5_conv3" in text.getvalue()
    assert "50%" in text.getvalue()
    assert "remaining:" in text.getvalue()


@pytest.mark.parametrize(("state", "terminal"), [(VisualState(epoch=1), True), (VisualState(), False)])
def test_there_is_no_progress_bar_in_training_or_without_a_terminal(state: VisualState, terminal: bool) -> None:
    text = io.StringIO()
    with progress_bar("synthesis", state, Console(file=text, force_terminal=terminal)) as told:
        assert told is None
    assert text.getvalue() == ""


@pytest.mark.parametrize(("option", "value"), [("samples", 0), ("patches", -1), ("catch_up", 0)])
def test_numbers_out_of_range_are_refused(option: str, value: int) -> None:
    with pytest.raises(UserError, match=rf"visuals\.synthesis\.{option}={value}"):
        visual(**{option: value})
