"""The synthesis visual: its grid, its comparison with real images, and what it keeps over a training."""

import dataclasses
import io
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console

from filterscope.analysis.synthesis import Recipe, measure_statistics, renderer
from filterscope.analysis.top_patches import top_patches
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.visuals.drawing.tiles import photo
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


def change(classifier: Classifier) -> None:
    with torch.no_grad():
        classifier.module_of(LAYER).weight.mul_(1.1)  # type: ignore[operator, union-attr]


def test_a_picture_during_training_is_the_one_that_the_network_of_that_epoch_gets_from_noise(
    classifier: Classifier, examples: Examples
) -> None:
    state = VisualState(epoch=0, epoch_images=10**9)
    visual()(classifier, examples, state)
    change(classifier)
    state.epoch = 1
    visual()(classifier, examples, state)
    scratch = VisualState(epoch=0)
    visual()(classifier, examples, scratch)
    assert torch.equal(state.store["synthesis"][LAYER]["tiles"], scratch.store["synthesis"][LAYER]["tiles"])


def drawn_channels(classifier: Classifier, examples: Examples, images: int | None, **options: object) -> list[int]:
    """Return how many channels are drawn in each of eight epochs after epoch 0; the eighth is the last."""
    state = VisualState(epoch=0, epoch_images=images)
    classifier.image_size = RECIPE.size
    counts = []
    for state.epoch in range(9):
        state.last = state.epoch == 8
        change(classifier)
        tags = visual(channels=6, **options)(classifier, examples, state)
        counts.append(len(state.store["synthesis"][LAYER]["channels"]) if tags else 0)
    return counts


def test_pictures_of_an_epoch_cost_at_most_their_share_and_fewer_are_drawn_otherwise(
    classifier: Classifier, examples: Examples
) -> None:
    assert drawn_channels(classifier, examples, 10**9) == [2, *[6] * 8]  # random weights have learned nothing
    classifier.backbone.pretrained = True
    assert drawn_channels(classifier, examples, 10**9) == [6] * 9
    assert drawn_channels(classifier, examples, None) == [6] * 9
    assert drawn_channels(classifier, examples, 1, share=None) == [6] * 9
    assert drawn_channels(classifier, examples, 1) == [6, *[0] * 7, 6]
    few = drawn_channels(classifier, examples, 30)
    assert few[0] == few[-1] == 6
    assert 0 in few[1:-1]
    assert set(few[1:-1]) <= {0, 2, 3}  # at least two, so that the timeline has what it shows
    assert sum(few[1:-1]) > 2  # what an epoch leaves is saved


def test_a_picture_weaker_than_a_real_image_gives_way_to_the_best_real_patch(
    classifier: Classifier, examples: Examples
) -> None:
    weak = Recipe(size=24, steps=1, learning_rate=0.0, objective="channel", precision="fp32")
    (picture,) = visual(recipe=weak)(classifier, examples, VisualState()).values()
    assert "*best real patch*" in picture.description
    (picture,) = visual(recipe=dataclasses.replace(RECIPE, steps=60, learning_rate=0.2))(
        classifier, examples, VisualState()
    ).values()
    assert "*best real patch*" not in picture.description


def test_the_timeline_shows_the_best_real_patch_for_a_weaker_picture(
    classifier: Classifier, examples: Examples
) -> None:
    weak, state = Recipe(size=24, steps=1, learning_rate=0.0, objective="channel", precision="fp32"), VisualState()
    visual(recipe=weak)(classifier, examples, state)
    kept = state.store["synthesis"][LAYER]
    best = top_patches(classifier, examples.images, LAYER, kept["channels"], count=1)[:, 0]
    for tile, patch in zip(kept["tiles"], best, strict=True):
        shown, real = tile.numpy(), photo(F.interpolate(patch[None], (24, 24), mode="nearest-exact")[0], TILE)
        assert (shown[:60, :60] == real[:60, :60]).all()
        assert (shown[-10, -10] == 255).all()  # the dot


def test_several_pictures_of_a_channel_are_all_shown_though_they_are_weaker(
    classifier: Classifier, examples: Examples
) -> None:
    weak = Recipe(size=24, steps=1, learning_rate=0.0, objective="channel", precision="fp32")
    for more in ({"samples": 2}, {"patches": 1}):
        (picture,) = visual(recipe=weak, **more)(classifier, examples, VisualState()).values()
        assert "*best real patch*" not in picture.description


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


def test_there_is_no_progress_bar_in_training() -> None:
    text = io.StringIO()
    with progress_bar("synthesis", VisualState(epoch=1), Console(file=text, force_terminal=True)) as told:
        assert told is None
    assert text.getvalue() == ""


def test_without_a_terminal_every_tenth_of_long_work_is_a_line_with_the_time_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with progress_bar("gallery:", VisualState(), Console(file=io.StringIO(), force_terminal=False)) as told:
        assert told is not None
        for percent in range(1, 101):
            now[0] = 6.0 * percent  # ten minutes in all
            told("block3_conv1", percent / 100)
    lines = [record.message for record in caplog.records]
    assert len(lines) == 9
    assert lines[1] == "gallery: block3_conv1, 20 % done, about 8.0 minutes left"


@pytest.mark.parametrize(("option", "value"), [("samples", 0), ("patches", -1), ("share", -0.1)])
def test_numbers_out_of_range_are_refused(option: str, value: int) -> None:
    with pytest.raises(UserError, match=rf"Synthesis\.{option}={value}: must be an? .* of at least"):
        visual(**{option: value})
