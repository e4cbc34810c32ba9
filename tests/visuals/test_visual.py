from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import yaml
from torch import nn

from filterscope import registry
from filterscope.config.instantiate import instantiate
from filterscope.errors import UserError
from filterscope.models.backbone import Backbone
from filterscope.models.classifier import Classifier
from filterscope.registry import find, registered, target_of
from filterscope.visuals.filters import Filters
from filterscope.visuals.layer_state import fingerprints, is_frozen
from filterscope.visuals.predictions import Predictions
from filterscope.visuals.visual import Examples, Visual, VisualState, layer_note, render, resolve_visuals


@dataclass(frozen=True, kw_only=True)
class Epochs(Visual):
    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> dict[str, float]:
        return {"epoch": float(state.epoch or 0)}


def drawn(every: int, classifier: Classifier, examples: Examples) -> list[int]:
    visuals = {"epochs": Epochs(every=every)}
    return [epoch for epoch in range(7) if render(visuals, classifier, examples, VisualState(epoch=epoch))]


@pytest.mark.parametrize(("every", "epochs"), [(1, list(range(7))), (3, [0, 3, 6]), (0, [0])])
def test_every_says_in_which_epochs_a_visual_draws(
    every: int, epochs: list[int], classifier: Classifier, examples: Examples
) -> None:
    assert drawn(every, classifier, examples) == epochs


def test_without_training_a_visual_always_draws(classifier: Classifier, examples: Examples) -> None:
    assert render({"epochs": Epochs(every=0)}, classifier, examples, VisualState()) == {"epoch": 0.0}


def test_a_misspelt_attribute_of_a_visual_is_an_error() -> None:
    with pytest.raises(TypeError, match=r"Odd\.unsuported_reason .* \(did you mean unsupported_reason\?\)"):

        class Odd(Epochs):
            def unsuported_reason(self) -> str:
                return ""

    with pytest.raises(TypeError, match=r"Eager\.need_images .* \(did you mean needs_images\?\)"):

        class Eager(Epochs):
            need_images: ClassVar[bool] = True


def test_every_visual_of_the_configs_is_registered_under_its_name() -> None:
    targets = {}
    for path in (Path(__file__).parents[2] / "conf/visuals").glob("*.yaml"):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and "_target_" in content.get(path.stem, {}):
            targets[path.stem] = content[path.stem]["_target_"]
    assert {name: target_of(visual) for name, visual in registered("visual").items()} == targets
    assert all(issubclass(visual, Visual) for visual in registered("visual").values())


def test_a_registered_visual_of_anyone_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    registered("visual")
    monkeypatch.setitem(registry._registered["visual"], "epochs", Epochs)
    assert resolve_visuals(["epochs", "filters"]) == {"epochs": Epochs(), "filters": Filters()}


def test_a_visual_whose_options_have_no_default_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"visual 'directions' needs options: give Directions\(directions=…\)"):
        resolve_visuals("directions")


def test_an_option_out_of_range_is_one_line() -> None:
    with pytest.raises(UserError, match=r"visuals\.filters\.every=-1: must be an integer of at least 0"):
        instantiate({"_target_": "filterscope.visuals.filters.Filters", "every": -1}, where="visuals.filters")
    with pytest.raises(UserError, match=r"Filters\.every=-1: must be an integer of at least 0"):
        Filters(every=-1)


def test_every_visual_checks_its_options() -> None:
    needed = {"directions": {"directions": [{0: 1.0}]}}
    for name, visual in registered("visual").items():
        with pytest.raises(UserError, match=r"every=-1"):
            visual(**needed.get(name, {}), every=-1)


def test_examples_run_in_the_precision_of_the_training(classifier: Classifier, examples: Examples) -> None:
    ran = []
    classifier.head.register_forward_hook(lambda _module, _inputs, output: ran.append(output.dtype))
    looked = {"predictions": Predictions()}
    render(looked, classifier, examples, VisualState(), precision=partial(torch.autocast, "cpu", dtype=torch.bfloat16))
    render(looked, classifier, examples, VisualState())
    assert ran == [torch.bfloat16, torch.float32]


def notes(classifier: Classifier, state: VisualState, epochs: range, *, alone: bool = False) -> list[str | None]:
    noted = []
    for state.epoch in epochs:
        noted.append(layer_note(classifier, "block2_conv1", "filters/block2_conv1", state, alone=alone))
    return noted


def test_a_frozen_layer_is_drawn_once_and_says_so(classifier: Classifier) -> None:
    classifier.backbone.requires_grad_(False)
    assert notes(classifier, VisualState(), range(4)) == ["epoch 0, frozen", None, None, None]


def test_a_layer_that_is_not_frozen_is_drawn_in_every_epoch(classifier: Classifier) -> None:
    state = VisualState()
    assert notes(classifier, state, range(3)) == ["epoch 0", "epoch 1", "epoch 2"]
    classifier.backbone.requires_grad_(False)
    assert notes(classifier, state, range(3, 5)) == ["epoch 3, frozen", None]
    classifier.backbone.requires_grad_(True)
    assert notes(classifier, state, range(5, 6)) == ["epoch 5"]
    classifier.backbone.requires_grad_(False)
    assert notes(classifier, state, range(6, 8)) == ["epoch 6, frozen", None]


def test_a_frozen_layer_behind_trained_ones_is_redrawn_unless_its_picture_shows_it_alone(
    classifier: Classifier,
) -> None:
    classifier.module_of("block2_conv1").requires_grad_(False)
    assert notes(classifier, VisualState(), range(2)) == ["epoch 0", "epoch 1"]
    assert notes(classifier, VisualState(), range(2), alone=True) == ["epoch 0, frozen", None]


def test_drawing_an_epoch_again_gives_the_same_note(classifier: Classifier) -> None:
    classifier.backbone.requires_grad_(False)
    state = VisualState()
    assert notes(classifier, state, range(1)) == notes(classifier, state, range(1)) == ["epoch 0, frozen"]


def test_outside_training_everything_is_drawn_without_a_note(classifier: Classifier) -> None:
    classifier.requires_grad_(False)
    state = VisualState()
    assert [layer_note(classifier, "block1_conv1", "t", state) for _ in range(3)] == ["", "", ""]
    assert state.store == {}


def test_drawn_frozen_layers_are_remembered_in_a_checkpoint(classifier: Classifier, tmp_path) -> None:
    classifier.backbone.requires_grad_(False)
    state = VisualState()
    notes(classifier, state, range(3))
    torch.save(state.store, tmp_path / "state.pt")
    again = VisualState(store=torch.load(tmp_path / "state.pt", weights_only=True))
    assert notes(classifier, again, range(3, 5)) == [None, None]


def test_a_fingerprint_covers_the_layers_before_and_none_after(classifier: Classifier) -> None:
    names = ("block1_conv1", "block2_conv1")
    before = fingerprints(classifier, names)
    assert before["block1_conv1"] != before["block2_conv1"]
    assert fingerprints(classifier, names[1:]) == {"block2_conv1": before["block2_conv1"]}
    with torch.no_grad():
        classifier.head.weight.add_(1)
    assert fingerprints(classifier, names) == before
    with torch.no_grad():
        classifier.module_of("block2_conv1").bias.add_(1)
    changed = fingerprints(classifier, names)
    assert changed["block1_conv1"] == before["block1_conv1"]
    assert changed["block2_conv1"] != before["block2_conv1"]
    with torch.no_grad():
        classifier.module_of("block1_conv1").bias.add_(1)
    assert all(new != old for new, old in zip(fingerprints(classifier, names).values(), changed.values(), strict=True))


def test_a_fingerprint_includes_the_counters_of_batch_norm() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    backbone = Backbone(network, name="bn", mean=[0.0] * 3, std=[1.0] * 3)
    classifier = Classifier(backbone, nn.Identity(), num_classes=2)
    name = next(layer.name for layer in classifier.layers.values() if layer.kind == "norm")
    before = fingerprints(classifier, [name])
    network[1].num_batches_tracked += 1
    assert fingerprints(classifier, [name]) != before


def test_a_layer_is_frozen_only_if_all_before_it_is(classifier: Classifier) -> None:
    classifier.requires_grad_(False)
    classifier.module_of("block1_conv1").weight.requires_grad_(True)
    assert not is_frozen(classifier, "block2_conv1")
    assert is_frozen(classifier, "block2_conv1", alone=True)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("filters", {"layers": []}, "layers=[]: must be a non-empty list of texts or null"),
        (
            "filters",
            {"channels": 0},
            "channels=0: must be a non-empty list of integers, an integer of at least 1 or null",
        ),
        ("filters", {"channels": []}, "channels=[]: must be a non-empty list of integers, an integer"),
        (
            "activations",
            {"images": []},
            "images=[]: must be a non-empty list of integers or an integer of at least 1",
        ),
        (
            "responses",
            {"channels": -5},
            "channels=-5: must be a non-empty list of integers, an integer of at least 1",
        ),
        ("figures", {"width": -1}, "width=-1: must be a number above 0"),
        ("figures", {"width": float("nan")}, "width=nan: must be a number above 0"),
        ("figures", {"dpi": 0}, "dpi=0: must be an integer of at least 1"),
        ("health", {"batch_size": 0}, "batch_size=0: must be an integer of at least 1"),
        ("health", {"level": 2}, "level=2: must be a number of at least 0 and at most 1"),
        ("movies", {"seconds": 0}, "seconds=0: must be a number above 0"),
    ],
)
def test_an_option_that_leaves_nothing_to_draw_is_refused(name: str, options: dict, reason: str) -> None:
    with pytest.raises(UserError) as caught:
        find("visual", name)(**options)
    assert reason in str(caught.value)
