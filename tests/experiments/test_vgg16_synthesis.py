"""Every function of the VGG16 notebook, compared with an independent result."""

from pathlib import Path

import pytest
import torch
from visualize import visualize

from filterscope.analysis.synthesis import Recipe, synthesize
from filterscope.errors import UserError
from filterscope.models import heads
from filterscope.models.backbone import torchvision_backbone
from planted import Compose
from run_files import rows_of


def test_vgg16_synthesis_writes_the_summary_the_comparison_and_the_objective(composed: Compose, tmp_path: Path) -> None:
    cfg = composed(
        "experiment=vgg16_synthesis", "model.weights=null", "visuals.comparison.layers=[block1_conv1]",
        "visuals.comparison.channels=[63]", "visuals.comparison.recipes.notebook.size=32",
        "visuals.comparison.recipes.notebook.steps=20", "visuals.comparison.recipes.specific.size=32",
        "visuals.comparison.recipes.specific.steps=10", config="visualize",
    )  # fmt: skip
    assert visualize(cfg, tmp_path) == ["summary", "comparison/block1_conv1", "objective/block1_conv1"]
    rows = rows_of(tmp_path / "summary.csv")
    assert rows[0] == {"layer": "block1_conv1", "output": "64×96×96", "parameters": "1792"}
    assert rows[-2]["output"] == "512×3×3"
    assert rows[-1] == {"layer": "total", "output": "", "parameters": "14714688"}
    steps = [
        (row["recipe"], row["filter"], row["step"]) for row in rows_of(tmp_path / "objective" / "block1_conv1.csv")
    ]
    assert steps == [("notebook", "63", "10"), ("notebook", "63", "20"), ("specific", "63", "10")]


def test_random_filters_follow_the_seed_and_may_be_the_last() -> None:
    from filterscope.visuals.comparison import Comparison

    classifier = heads.linear(torchvision_backbone(name="alexnet", weights=None), num_classes=2)
    drawn = [Comparison(layers=1, channels=1, pick="random", seed=seed)._select(classifier) for seed in range(400)]
    assert drawn[0] == Comparison(layers=1, channels=1, pick="random", seed=0)._select(classifier)
    assert {name for chosen in drawn for name in chosen} == {
        "block1_conv1", "block2_conv1", "block3_conv1", "block3_conv2", "block3_conv3",
    }  # fmt: skip
    whole = Comparison(layers=["block1_conv1"], channels=64, pick="random")._select(classifier)
    assert whole == {"block1_conv1": list(range(64))}
    with pytest.raises(UserError, match="channel 64 of block1_conv1 does not exist; it has 0 to 63"):
        Comparison(layers=["block1_conv1"], channels=[64])._select(classifier)


def test_the_notebook_recipe_of_the_experiment_is_the_notebooks(composed: Compose) -> None:
    recipe = composed("experiment=vgg16_synthesis")["visuals"]["comparison"]["recipes"]["notebook"]
    options = {name: value for name, value in recipe.items() if name != "_target_"}
    assert Recipe(**options) == Recipe(
        objective="channel", parameterization="pixels", size=96, steps=500, learning_rate=0.1, optimizer="normalized",
        start="uniform", bounded=False, decorrelate=False, normalize=False, jitter=0.0, scale=0.0, rotate=0.0,
        untransformed=0.0, leaky_slope=0.0, leaky_steps=0, anneal=0.0, precision="fp32", crop=None,
    )  # fmt: skip


def gains(weights: str | None, objective: str, composed: Compose) -> torch.Tensor:
    """Return the increase of the objective at each of 60 steps of the notebook's ascent of a first-layer filter."""
    torch.manual_seed(0)
    classifier = heads.linear(torchvision_backbone(name="vgg16", weights=weights), num_classes=2)
    recipe = composed("experiment=vgg16_synthesis")["visuals"]["comparison"]["recipes"]["notebook"]
    options = {name: value for name, value in recipe.items() if name != "_target_"}
    changed = Recipe(**{**options, "objective": objective, "steps": 60})
    return synthesize(classifier, "block1_conv1", [20], recipe=changed).curve[:, 0].double().diff()


def test_the_mean_before_the_relu_increases_equally_at_every_step_and_the_notebooks_nearly_so(
    composed: Compose,
) -> None:
    affine, rectified = gains(None, "logit", composed), gains(None, "channel", composed)
    assert float(affine.max() - affine.min()) < 1e-6 < float(affine.mean()) / 100
    assert float(rectified.max() - rectified.min()) < 0.2 * float(rectified.mean())


@pytest.mark.real
def test_the_real_first_layer_increases_equally_too(real: Path, composed: Compose) -> None:
    weights = str(real / "weights" / "vgg16_features.pth")
    affine, rectified = gains(weights, "logit", composed), gains(weights, "channel", composed)
    assert float(affine.max() - affine.min()) < 1e-6 < float(affine.mean()) / 100
    assert float(rectified.max() - rectified.min()) < 0.2 * float(rectified.mean())
