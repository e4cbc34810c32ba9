"""The history holds every trained layer as it was in evenly spaced epochs."""

import pytest
import torch

from filterscope.analysis.filters import kernels
from filterscope.analysis.top_patches import measure_responses
from filterscope.models.classifier import Classifier
from filterscope.visuals.drawing.tiles import kernel_tiles
from filterscope.visuals.filter_words import remember_words
from filterscope.visuals.history import History
from filterscope.visuals.visual import Examples, VisualState


@pytest.fixture
def many() -> Examples:
    return Examples(images=torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(2)))


def test_history_records_epochs_unchanged_and_thins_them_out_evenly(classifier: Classifier, many: Examples) -> None:
    state, known = VisualState(), {}
    record = History(epochs=3)
    for state.epoch in range(6):
        sentences = [f"edge {i} in epoch {state.epoch}" for i in range(8)]
        remember_words(state, "block1_conv1", source="tuning", sentences=sentences, captions=[[]] * 8)
        assert record(classifier, many, state) == {}
        responses = measure_responses(classifier, many.images, ["block1_conv1"])["block1_conv1"]
        known[state.epoch] = kernel_tiles(kernels(classifier, "block1_conv1"))[0], responses.largest.argmax(0)
        with torch.no_grad():
            for parameter in classifier.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    kept = state.store["history"]["block1_conv1"]
    assert len(kept) == 3
    assert {0, 5} <= set(kept)
    for epoch, entry in kept.items():
        assert (entry["kernel"].numpy() == known[epoch][0]).all()
        assert entry["patch"][:, 0].equal(known[epoch][1].int())
        assert entry["response"].shape == (8, 16, 16)
        assert entry["sentences"][3] == f"edge 3 in epoch {epoch}"
    assert state.store["history_images"].equal((many.images * 255).round().byte())


def test_frozen_layers_have_no_history(classifier: Classifier, many: Examples) -> None:
    state = VisualState(epoch=0)
    for parameter in classifier.backbone.network[0].parameters():
        parameter.requires_grad = False
    History()(classifier, many, state)
    assert list(state.store["history"]) == ["block2_conv1"]
