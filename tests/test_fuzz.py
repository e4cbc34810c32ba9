"""Nonsense ends in one line, never in a traceback; `benchmarks/faults.py --only fuzz` tries more of it."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from train import train

import fuzzing
from filterscope.edge import plain
from filterscope.errors import UserError
from filterscope.runs import open_run
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
        train(plain(hydra.compose("train", [*TINY, "visuals=[filters,health]", "trainer.max_epochs=1"])), folder)
        yield folder / "checkpoints" / "last.ckpt"


@pytest.mark.filterwarnings("ignore")
@FEW
@given(overrides=fuzzing.overrides())
def test_overrides_are_taken_or_refused(whole: Path, overrides: list[str]) -> None:
    fuzzing.set_up(overrides, whole.parent.parent / "set_up")


@pytest.fixture(scope="module")
def content(whole: Path) -> dict[str, Any]:
    return torch.load(whole, weights_only=True)


@pytest.mark.filterwarnings("ignore")
@FEW
@given(choices=st.data())
def test_a_checkpoint_with_anything_anywhere_is_opened_or_refused(
    content: dict[str, Any], whole: Path, choices: st.DataObject
) -> None:
    file = whole.parent / "changed.ckpt"
    torch.save(fuzzing.mutate(content, lambda count: choices.draw(st.integers(0, count - 1))), file)
    opened_or_refused(file)


@pytest.mark.filterwarnings("ignore")
@FEW
@given(choices=st.data())
def test_a_damaged_file_is_opened_or_refused(whole: Path, choices: st.DataObject) -> None:
    file = whole.parent / "changed.ckpt"
    file.write_bytes(fuzzing.damage(whole.read_bytes(), lambda count: choices.draw(st.integers(0, count - 1))))
    opened_or_refused(file)


def opened_or_refused(file: Path) -> None:
    with suppress(UserError):
        open_run(file)
