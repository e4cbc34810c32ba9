"""Every option of every config group composes and builds what it names, and every option is in its YAML file."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import get_object

from filterscope.config import factory, instantiate, trainer_factory
from filterscope.config.options import find_runs
from filterscope.errors import UserError
from filterscope.training.schedules import takes_total_steps
from tiny import REPOSITORY

Compose = Callable[..., dict[str, Any]]
CONF = REPOSITORY / "conf"


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml") if not path.stem.startswith("_"))


@pytest.mark.parametrize("name", [name for name in options("data") if name != "none"])
def test_every_data_option_builds(name: str, composed: Compose) -> None:
    data = instantiate.instantiate(composed(f"data={name}")["data"], where="data")
    assert data.num_channels == 3


@pytest.mark.parametrize("name", options("finetune"))
def test_every_policy_builds(name: str, composed: Compose) -> None:
    assert instantiate.instantiate(composed(f"finetune={name}")["finetune"], where="finetune").lr > 0


@pytest.mark.parametrize("schedule", options("schedule"))
@pytest.mark.parametrize("optimizer", options("optimizer"))
def test_every_optimizer_takes_a_step_under_every_schedule(optimizer: str, schedule: str, composed: Compose) -> None:
    cfg = composed(f"optimizer={optimizer}", f"schedule={schedule}")
    weight = torch.nn.Parameter(torch.ones(3, 3))
    made = instantiate.instantiate(cfg["optimizer"], where="optimizer")([{"params": [weight], "lr": 0.1}])
    options = {key: value for key, value in cfg["schedule"].items() if key != "interval"}
    make = instantiate.instantiate(options, where="schedule")
    plan = make(made, **({"total_steps": 4} if takes_total_steps(make) else {}))
    weight.grad = torch.ones(3, 3)
    made.step()
    plan.step(*([1.0] if schedule == "plateau" else []))
    assert (weight < 1).all()


@pytest.mark.parametrize("name", options("visuals"))
def test_every_visuals_option_builds(name: str, composed: Compose) -> None:
    visuals = factory.build_visuals(composed(f"visuals={name}"))
    assert bool(visuals) == (name != "none")
    assert all(callable(visual) for visual in visuals.values())


@pytest.mark.parametrize("name", options("recipe"))
def test_every_recipe_builds(name: str, composed: Compose) -> None:
    recipe = factory.build_visuals(composed("visuals=synthesis", f"recipe={name}"), 80)["synthesis"].recipe
    assert recipe.size == {"natural": 80, "notebook": 96}.get(name, 128)


@pytest.mark.parametrize("name", [name for name in options("trainer") if name in ("default", "cpu", "smoke")])
def test_every_trainer_for_one_cpu_builds(name: str, composed: Compose, tmp_path: Path) -> None:
    cfg = composed(f"trainer={name}", "trainer.enable_progress_bar=false")
    assert trainer_factory.build_trainer(cfg, tmp_path, {}).max_epochs in (1, 10)


@pytest.mark.parametrize("name", options("experiment"))
def test_every_experiment_says_its_command_and_composes_with_it(name: str, composed: Compose) -> None:
    header = (CONF / "experiment" / f"{name}.yaml").read_text().split("defaults:")[0]
    commands = [
        line.removeprefix("#   python ").split("  ")[0] for line in header.splitlines() if "#   python " in line
    ]
    mine = [command for command in commands if f"experiment={name}" in command]
    assert mine, "an experiment's header gives its command"
    script, *overrides = mine[0].split()
    assert composed(*overrides, config=script.removesuffix(".py"))


@pytest.mark.parametrize("group", ["data", "finetune", "model", "recipe", "schedule"])
def test_every_option_of_a_constructor_is_in_its_yaml(group: str, composed: Compose) -> None:
    given = {"total_steps", "optimizer"}  # passed by the program
    for name in options(group):
        extra = ("model.name=resnet50",) if name in ("torchvision", "timm") else ()
        extra = ("model.path=my_package.my_net",) if name == "callable" else extra
        node = composed(f"{group}={name}", *extra)[group]
        if node.get("_target_", "").startswith("filterscope."):
            missing = set(inspect.signature(get_object(node["_target_"])).parameters) - given - node.keys()
            assert not missing, f"{group}/{name}.yaml lacks {missing}"


def test_runs_are_found_by_their_folders_and_each_once(tmp_path: Path) -> None:
    for name in ("sweep/0", "sweep/1", "other"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "checkpoints" / "best.ckpt").touch()
    assert list(find_runs(str(tmp_path / "sweep"))) == ["0", "1"]
    assert list(find_runs([None, str(tmp_path / "other")])) == ["published network", "other"]
    wrong = ([None, None], [str(tmp_path / "other")], [str(tmp_path / "other"), str(tmp_path / "sweep/../other")])
    for asked in wrong:
        with pytest.raises(UserError, match=r"runs: 1 different run\(s\) found; give at least two, each once"):
            find_runs(asked)
