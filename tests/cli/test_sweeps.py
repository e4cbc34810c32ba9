"""The table at the end of a sweep."""

import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from filterscope.cli.sweeps import check_launcher, runs_table, write_sweep_table
from filterscope.errors import UserError
from run_files import rows_of
from tiny import TINY

Script = Callable[..., subprocess.CompletedProcess[str]]
SUBMITIT = find_spec("submitit") is not None


def job(name: str, *choices: str, **measured: float) -> dict[str, Any]:
    metrics = {name.replace("__", "/"): value for name, value in measured.items()}
    return {"folder": f"sweep/{name}", "choices": ["seed=1", *choices], "metrics": metrics, "monitor": "val/acc"}


JOBS = (
    job("0_full", "finetune=full", val__acc=0.5, verdicts__useful=0.75, health__drift__conv1=0.1),
    job("1_probe", "finetune=linear_probe", val__acc=0.25, verdicts__useful=1.0),
)


def test_the_table_of_a_sweep_shows_accuracy_health_and_the_options_that_differ() -> None:
    table = runs_table(JOBS)
    assert table.columns == ("chosen", "val/acc", "useful", "run")
    assert table.rows == (("finetune=full", 0.5, 0.75, "0_full"), ("finetune=linear_probe", 0.25, 1.0, "1_probe"))


def test_a_run_without_verdicts_leaves_its_cells_empty() -> None:
    table = runs_table([*JOBS, job("2_blind", "visuals=none", val__acc=0.1)])
    assert table.rows[-1] == ("visuals=none", 0.1, "", "2_blind")


def test_the_table_is_written_to_the_folder_of_the_sweep(tmp_path: Path) -> None:
    text = write_sweep_table(JOBS, tmp_path)
    assert "finetune=linear_probe" in text
    assert (tmp_path / "runs.csv").read_text().splitlines()[0] == "chosen,val/acc,useful,run"


@pytest.mark.parametrize(
    "launcher",
    [
        "basic",
        pytest.param("workers", marks=pytest.mark.skipif(not SUBMITIT, reason="the extra slurm is not installed")),
    ],
)
def test_a_failed_job_is_reported_at_the_end_wherever_it_ran(launcher: str, script: Script, tmp_path: Path) -> None:
    chosen = "visuals.filters.layers=[block9_conv1],[block1_conv1]"
    small = ("visuals=filters", "trainer.max_epochs=1", "hydra.sweep.dir=sweep")
    done = script("train.py", "-m", f"hydra/launcher={launcher}", *TINY, *small, chosen)
    assert done.returncode == 1, done.stdout + done.stderr
    told = [line for line in (done.stdout + done.stderr).splitlines() if "1 of the jobs failed" in line]
    assert len(told) == 1
    assert "job 0: unknown layer 'block9_conv1'" in told[0]
    (row,) = rows_of(tmp_path / "sweep" / "runs.csv")
    assert row["run"].startswith("1_")
    assert float(row["val/acc"]) >= 0


@pytest.mark.skipif(not SUBMITIT, reason="the extra slurm is not installed")
def test_a_missing_cluster_is_an_error_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no Slurm"):
        check_launcher(["-m", "hydra/launcher=slurm"])
    check_launcher(["-m", "hydra/launcher=workers"])
