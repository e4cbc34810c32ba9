"""Random input ends in one line, never in a traceback; `benchmarks/faults.py --only fuzz` tries more."""

import copy
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from train import train

import fuzzing
from filterscope.cli.main import resolve_config
from filterscope.config.from_checkpoint import open_run
from filterscope.errors import UserError
from tiny import TINY

FEW = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the checkpoint of a real run."""
    import hydra

    folder = tmp_path_factory.mktemp("run")
    with fuzzing.composing():
        train(
            resolve_config(hydra.compose("train", [*TINY, "visuals=[filters,health]", "trainer.max_epochs=1"])), folder
        )
        yield folder / "checkpoints" / "last.ckpt"


@pytest.mark.filterwarnings("ignore")
@FEW
@given(overrides=fuzzing.overrides())
def test_random_overrides_are_accepted_or_refused_in_one_line(whole: Path, overrides: list[str]) -> None:
    fuzzing.set_up(overrides, whole.parent.parent / "set_up")


@pytest.fixture(scope="module")
def content(whole: Path) -> dict[str, Any]:
    return torch.load(whole, weights_only=True)


@pytest.mark.filterwarnings("ignore")
@FEW
@given(choices=st.data())
def test_a_checkpoint_with_arbitrary_values_is_opened_or_refused_in_one_line(
    content: dict[str, Any], whole: Path, choices: st.DataObject
) -> None:
    file = whole.parent / "changed.ckpt"
    torch.save(fuzzing.mutate(content, lambda count: choices.draw(st.integers(0, count - 1))), file)
    opened_or_refused(file)


@pytest.mark.filterwarnings("ignore")
@FEW
@given(choices=st.data())
def test_a_damaged_file_is_opened_or_refused_in_one_line(whole: Path, choices: st.DataObject) -> None:
    file = whole.parent / "changed.ckpt"
    file.write_bytes(fuzzing.damage(whole.read_bytes(), lambda count: choices.draw(st.integers(0, count - 1))))
    opened_or_refused(file)


def odd_rate(content: dict[str, Any]) -> None:
    content["optimizer_states"][0]["param_groups"][0]["lr"] = {}


def no_betas(content: dict[str, Any]) -> None:
    content["optimizer_states"][0]["param_groups"][0]["betas"] = (0.9,)


def small_moment(content: dict[str, Any]) -> None:
    content["optimizer_states"][0]["state"][0]["exp_avg"] = torch.zeros(2, 3)


def lost_moment(content: dict[str, Any]) -> None:
    del content["optimizer_states"][0]["state"][1]["exp_avg_sq"]


def lost_base(content: dict[str, Any]) -> None:
    content["lr_schedulers"][0]["base_lrs"] = []


def odd_best(content: dict[str, Any]) -> None:
    next(each for name, each in content["callbacks"].items() if "RunCheckpoints" in name)["best"] = "x"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("change", [odd_rate, no_betas, small_moment, lost_moment, lost_base, odd_best])
def test_a_checkpoint_with_an_unusable_optimizer_state_is_refused_before_the_first_step(
    change: Callable[[dict[str, Any]], None], content: dict[str, Any], tmp_path: Path
) -> None:
    import hydra

    changed = copy.deepcopy(content)
    change(changed)
    (tmp_path / "checkpoints").mkdir()
    torch.save(changed, tmp_path / "checkpoints" / "last.ckpt")
    cfg = resolve_config(hydra.compose("train", [*TINY, "visuals=[filters,health]", "trainer.max_epochs=2"]))
    with pytest.raises(UserError, match=r"last\.ckpt does not fit its run: ValueError"):
        train(cfg | {"resume": str(tmp_path)}, tmp_path)


def opened_or_refused(file: Path) -> None:
    with suppress(UserError):
        open_run(file)
