"""A run may start from the head that ridge regression finds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from train import train

from filterscope.errors import UserError
from filterscope.training import ridge_head
from filterscope.training.ridge_head import Solution, solve_head
from run_files import weights_of
from tiny import TINY

Compose = Callable[..., dict[str, Any]]
RIDGE = (*TINY, "callbacks=[default,ridge_head]", "visuals=none")


def two_versions(size: int, *, images: int = 30, classes: int = 3) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(images) % classes
    centers = torch.randn(classes, size, generator=generator)
    noise = torch.randn(2, images, size, generator=generator)
    return list(centers[labels] + 1.5 * noise + 5), labels


def published_formula(
    versions: list[torch.Tensor], labels: torch.Tensor, found: Solution, weights: torch.Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Return weight and bias from the normal equations with a constant column, which is not penalised."""
    inputs = np.concatenate([each.numpy() for each in versions]).astype(np.float64)
    targets = np.eye(3)[np.tile(labels.numpy(), len(versions))]
    shares = np.tile(weights.numpy(), len(versions)).astype(np.float64)
    shares /= shares.sum()
    variance = (shares[:, None] * (inputs - shares @ inputs) ** 2).sum()
    extended = np.column_stack([inputs, np.ones(len(inputs))])
    penalty = np.diag([found.strength * variance] * inputs.shape[1] + [0.0])
    solution = np.linalg.solve(
        extended.T @ (shares[:, None] * extended) + penalty, extended.T @ (shares[:, None] * targets)
    )
    return found.scale * solution[:-1].T, found.scale * solution[-1]


@pytest.mark.parametrize("size", [8, 200], ids=["fewer features than images", "more features than images"])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_head_solves_the_normal_equations(size: int, weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ridge_head, "COLUMNS", 64)
    versions, labels = two_versions(size)
    weights = torch.tensor([1.0, 3.0, 0.5])[labels] if weighted else torch.ones(len(labels))
    found = solve_head(versions, labels, 3, weights)
    weight, bias = published_formula(versions, labels, found, weights)
    assert np.allclose(found.weight, weight, atol=2e-3 * np.abs(weight).max())
    assert np.allclose(found.bias, bias, atol=2e-3 * max(np.abs(bias).max(), np.abs(weight).sum(1).max()))


def test_the_strength_is_chosen_on_images_that_are_held_out() -> None:
    versions, labels = two_versions(200)
    others = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    meaningful, random = (solve_head(versions, each, 3, torch.ones(30)) for each in (labels, labels[others]))
    assert meaningful.accuracy > 0.8
    assert random.accuracy < 0.7
    assert random.scale <= 2 < meaningful.scale  # unsure of what cannot be predicted


def test_too_little_memory_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ridge_head, "free_memory", lambda: 1000)
    with pytest.raises(UserError, match=r"needs .* for 60 × 8 features, more than half of the 0.0 MB of free memory"):
        solve_head(*two_versions(8), 3, torch.ones(30))


def test_features_that_are_not_finite_are_one_line() -> None:
    versions, labels = two_versions(8)
    versions[1][3, 2] = float("inf")
    with pytest.raises(UserError, match="the network's features are not finite"):
        solve_head(versions, labels, 3, torch.ones(30))


def rows_of(folder: Path) -> list[str]:
    return (folder / "metrics.csv").read_text().splitlines()


def test_the_validation_before_training_sees_the_head(composed: Compose, tmp_path: Path) -> None:
    rows = []
    for finetune in ("linear_probe", "full"):  # features of the cache, and features that no cache holds
        options = (*RIDGE, f"finetune={finetune}", "model.allow_random=true", "trainer.max_epochs=0")
        metrics = train(composed(*options), tmp_path / finetune)
        assert metrics["val/acc"] >= 0.4  # chance is .1
        rows.append(rows_of(tmp_path / finetune))
    assert rows[0] == rows[1]


def test_training_goes_on_from_the_head_and_resumes_to_the_bit(composed: Compose, tmp_path: Path) -> None:
    options = (*RIDGE, "finetune=full", "finetune.lr=0.0001", "schedule=constant", "class_weights=balanced")
    options += ("data.sampling=balanced",)
    train(composed(*options), tmp_path / "whole")
    train(composed(*options, "trainer.max_epochs=1"), tmp_path / "stopped")
    train(composed(*options) | {"resume": str(tmp_path / "stopped")}, tmp_path / "stopped")
    whole, resumed = weights_of(tmp_path / "whole"), weights_of(tmp_path / "stopped")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "stopped")


def test_pictures_do_not_change_the_head(composed: Compose, tmp_path: Path) -> None:
    options = (*RIDGE, "trainer.max_epochs=1")
    train(composed(*options), tmp_path / "plain")
    train(composed(*options, "visuals=[filters,health,activations]"), tmp_path / "looked")
    plain, looked = weights_of(tmp_path / "plain"), weights_of(tmp_path / "looked")
    assert all(torch.equal(plain[name], looked[name]) for name in plain)


def test_a_network_without_a_linear_head_is_one_line(composed: Compose, tmp_path: Path) -> None:
    options = (*RIDGE, "model=torchvision", "model.name=squeezenet1_1", "model.weights=null", "head=keep")
    with pytest.raises(UserError, match="callbacks=ridge_head needs a Linear head; squeezenet1_1 ends in none"):
        train(composed(*options, "model.num_classes=10", "data.image_size=64"), tmp_path)
