"""A search with Optuna runs its trials, prunes, goes on after a kill, and ends in a table and a picture."""

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from train import train

from filterscope.errors import UserError
from filterscope.training import trial
from hydra_plugins.filterscope_search import _suggest
from run_files import rows_of
from tiny import TINY

optuna = pytest.importorskip("optuna")
Compose = Callable[..., dict[str, Any]]
SEARCH = (
    "-m", "hparams_search=optuna", "hydra.sweep.dir=search", "hydra.sweeper.startup_trials=1",
    "hydra.sweeper.warmup_epochs=0", *TINY, "visuals=none",
)  # fmt: skip


def test_a_search_goes_on_where_it_was_killed(script: Callable[..., CompletedProcess[str]], tmp_path: Path) -> None:
    done = script("train.py", *SEARCH, "hydra.sweeper.trials=1")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "search"
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / "study.journal")))
    killed = optuna.load_study(study_name="search", storage=storage).ask()
    for name, low, high in (("optimizer.lr", 1e-4, 1e-2), ("optimizer.weight_decay", 1e-4, 1e-1)):
        killed.suggest_float(name, low, high, log=True)
    rate = killed.params["optimizer.lr"]
    done = script("train.py", *SEARCH, "hydra.sweeper.trials=2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "trial 1 was interrupted and is repeated" in done.stdout
    first, failed, repeated = rows_of(folder / "trials.csv")
    assert (first["state"], failed["state"]) == ("complete", "fail")
    assert repeated["state"] in ("complete", "pruned")
    assert float(repeated["optimizer.lr"]) == pytest.approx(rate, rel=1e-3)
    assert (folder / "search.png").stat().st_size > 1000
    assert (folder / "2_synthetic_flowers_small_cnn_full" / "metrics.csv").is_file()
    other = script("train.py", *SEARCH, "optimizer.lr=interval(0.1,0.2)")
    assert other.returncode == 2
    assert "holds another search" in other.stderr + other.stdout


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("hydra.sweeper.trials=0", "hydra.sweeper.trials=0: must be an integer of at least 1"),
        ("optimizer.lr=choice(abc)", "trials failed; the last: optimizer.lr=abc"),
    ],
)
def test_a_search_that_cannot_run_is_one_line(option: str, line: str, script: Callable[..., Any]) -> None:
    done = script("train.py", *SEARCH, option)
    assert done.returncode == 2
    assert line in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_a_trial_without_its_metric_is_one_line(composed: Compose, tmp_path: Path) -> None:
    cfg = composed("hparams_search=optuna", *TINY, "visuals=none", "callbacks.trial.monitor=val/accuracy")
    study = optuna.create_study()
    trial.current[:] = [study.ask()]
    try:
        with pytest.raises(UserError, match=r"^callbacks\.trial\.monitor='val/accuracy' is not measured .*val/acc"):
            train(cfg, tmp_path / "run")
    finally:
        trial.current.clear()


@pytest.mark.parametrize(
    ("space", "values"),
    [("range(1,8,3)", {1, 4, 7}), ("range(8,1,-3)", {2, 5, 8}), ("range(0.5,2,0.5)", {0.5, 1.0, 1.5})],
)
def test_a_range_is_searched_in_its_own_steps(space: str, values: set[float]) -> None:
    override = OverridesParser.create().parse_override(f"x={space}")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    assert {_suggest(study.ask(), override) for _ in range(40)} == values
