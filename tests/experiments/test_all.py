"""Properties that the experiments of all five classic notebooks share."""

import pytest

from planted import Compose
from tiny import REPOSITORY

EXPERIMENTS = ("flowers_alexnet", "fashion_mnist_small_cnn", "animals_vgg16", "layer_taps", "vgg16_synthesis")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_states_its_command_in_its_header(name: str) -> None:
    lines = (REPOSITORY / "conf" / "experiment" / f"{name}.yaml").read_text().splitlines()
    script = "visualize.py" if name in EXPERIMENTS[3:] else "train.py"
    assert lines[0] == "# @package _global_"
    assert f"#   python {script} experiment={name}" in lines


@pytest.mark.parametrize("config", ["train", "visualize"])
@pytest.mark.parametrize("name", EXPERIMENTS[3:])
def test_experiments_without_training_compose_with_both_scripts(name: str, config: str, composed: Compose) -> None:
    cfg = composed(f"experiment={name}", config=config)
    assert cfg["model"]["name"] == "vgg16"
    text = (REPOSITORY / "conf" / "experiment" / f"{name}.yaml").read_text()
    overridden = {line.split()[2].strip("/:") for line in text.splitlines() if "- override" in line}
    assert overridden <= {"model", "data", "visuals", "recipe"}
