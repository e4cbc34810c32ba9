"""Animations of the epochs, and figures for print."""

import io
from pathlib import Path

import pytest
import torch
from PIL import Image

from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.visuals.figures import Figures
from filterscope.visuals.history import History, Movies
from filterscope.visuals.output.writer import write_outputs
from filterscope.visuals.visual import Examples, VisualState


@pytest.fixture
def state(classifier: Classifier, examples: Examples) -> VisualState:
    """Three epochs in which the weights change."""
    state = VisualState()
    for state.epoch in range(3):
        History()(classifier, examples, state)
        with torch.no_grad():
            classifier.backbone.network[0].weight.add_(torch.randn(8, 3, 5, 5))
    state.store["health"] = {"block1_conv1": {"verdicts": ["useful"] * 6 + ["noise", "dead"]}}
    state.epoch = None
    return state


@pytest.mark.parametrize("kind", ["webp", "gif"])
def test_an_animation_has_a_different_frame_for_every_epoch(
    classifier: Classifier, examples: Examples, state: VisualState, kind: str
) -> None:
    made = Movies(format=kind)(classifier, examples, state)
    assert set(made) == {"movies/block1_conv1", "movies/block2_conv1"}
    moving = Image.open(io.BytesIO(made["movies/block1_conv1"].contents[kind]))
    assert moving.n_frames == 3
    frames = []
    for number in range(3):
        moving.seek(number)
        frames.append(moving.convert("RGB").tobytes())
    assert len(set(frames)) == 3


def test_an_animation_needs_a_history(classifier: Classifier, examples: Examples) -> None:
    with pytest.raises(UserError, match=r"there is no history of block1_conv1, block2_conv1 to animate"):
        Movies()(classifier, examples, VisualState())


def test_figures_are_written_in_every_format_with_real_text(
    classifier: Classifier, examples: Examples, state: VisualState, tmp_path: Path
) -> None:
    write_outputs(
        Figures(layers=["block1_conv1", "block2_conv1"], dpi=100)(classifier, examples, state), folder=tmp_path
    )
    for name in ("block1_conv1", "block2_conv1", "health"):
        place = tmp_path / "pictures" / "figures"
        assert (place / f"{name}.pdf").read_bytes()[:5] == b"%PDF-"
        assert "<text" in (place / f"{name}.svg").read_text()
        with Image.open(place / f"{name}.png") as image:
            assert 3.0 <= image.width / 100 <= 3.5  # inches
    assert "noise" in (tmp_path / "pictures" / "figures" / "health.svg").read_text()


def test_equal_figures_are_equal_files(classifier: Classifier, examples: Examples, state: VisualState) -> None:
    one, other = (
        Figures(dpi=50, formats=["pdf", "svg"])(classifier, examples, state)["figures/health"].contents
        for _ in range(2)
    )
    assert one == other


def test_unknown_formats_are_refused() -> None:
    with pytest.raises(UserError, match=r"Figures\.formats=\['eps'\]: must be a non-empty list of png, pdf or svg"):
        Figures(formats=["eps"])
    with pytest.raises(UserError, match=r"Movies\.format='mp4': must be webp or gif"):
        Movies(format="mp4")
