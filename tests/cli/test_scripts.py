"""The commands that a user types, each in its own process."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import hydra
import pytest
from hydra.errors import HydraException

from filterscope.cli.search_path import explain
from tiny import REPOSITORY, TINY

Script = Callable[..., subprocess.CompletedProcess[str]]
LOOK = ("visuals=filters",)


def said(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout + done.stderr


def assert_refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode not in (0, -9), said(done)
    assert "Traceback" not in said(done)
    for word in words:
        assert re.search(word, said(done)), said(done)


def test_help_shows_examples_and_choices_without_importing_torch(script: Script) -> None:
    done = script("train.py", "--help")
    assert done.returncode == 0
    for word in (
        "Examples",
        "data: animals, csv, fashion_mnist",  # and not the file `_base`, which the others include
        "finetune: full, gradual, last_blocks, linear_probe",
        "max_epochs: 10",
    ):
        assert word in done.stdout
    assert "Examples" in script("visualize.py", "--help").stdout


def test_train_then_visualize_the_latest_run(script: Script, tmp_path: Path) -> None:
    done = script("train.py", *TINY, "export=state_dict")
    assert done.returncode == 0, said(done)
    (run,) = (tmp_path / "outputs").iterdir()
    assert "tensorboard --logdir outputs --samples_per_plugin images=100000" in done.stdout
    assert {"checkpoints", "metrics.csv", "pictures", ".hydra", "small_cnn.pt"} <= {path.name for path in run.iterdir()}
    drawn = script("visualize.py", "ckpt=latest", *LOOK)
    assert drawn.returncode == 0, said(drawn)
    assert len(list(tmp_path.glob("outputs/*_visualize/pictures/filters/*.png"))) == 2


def test_a_failed_job_of_a_sweep_does_not_end_the_others(script: Script, tmp_path: Path) -> None:
    sweep = ("-m", *TINY, *LOOK, "trainer.max_epochs=1", "visuals.filters.layers=[block9_conv1],[block1_conv1]")
    done = script("train.py", *sweep)
    assert_refused(done, "unknown layer 'block9_conv1'")
    assert len(list(tmp_path.glob("outputs/*_sweep/*/checkpoints/last.ckpt"))) == 1


def test_two_processes_share_one_run_folder_and_one_event_file(script: Script, tmp_path: Path) -> None:
    two = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true")
    tiny = [override for override in TINY if not override.startswith("trainer.")]
    done = script("train.py", *tiny, *two, *LOOK, "trainer.max_epochs=1", "trainer.enable_progress_bar=false")
    assert done.returncode == 0, said(done)
    (run,) = (tmp_path / "outputs").iterdir()
    assert len(list(run.glob("events.out.tfevents.*"))) == 1
    assert len((run / "metrics.csv").read_text().splitlines()) == 3


def test_a_sweep_with_two_processes_per_job_runs_each_job_once_in_its_own_folder(
    script: Script, tmp_path: Path
) -> None:
    two = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true")
    tiny = [override for override in TINY if not override.startswith("trainer.")]
    once = ("trainer.max_epochs=1", "trainer.enable_progress_bar=false", "seed=1,2")
    done = script("train.py", "-m", *tiny, *two, *LOOK, *once)
    assert done.returncode == 0, said(done)
    assert len(list(tmp_path.glob("outputs/*"))) == 1
    assert len(list(tmp_path.glob("outputs/*_sweep/*/metrics.csv"))) == 2
    assert len(list(tmp_path.glob("outputs/*_sweep/*/events.out.tfevents.*"))) == 2


def test_resume_continues_in_the_same_folder(script: Script, tmp_path: Path) -> None:
    assert script("train.py", *TINY, *LOOK, "trainer.max_epochs=1").returncode == 0
    (run,) = (tmp_path / "outputs").iterdir()
    stored = (run / ".hydra" / "config.yaml").read_bytes()
    done = script("train.py", f"resume=outputs/{run.name}", "trainer.max_epochs=2")
    assert done.returncode == 0, said(done)
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == [run.name]
    assert len((run / "metrics.csv").read_text().splitlines()) == 4
    assert (run / ".hydra" / "config.yaml").read_bytes() == stored


def test_the_base_file_of_a_group_is_not_offered_as_an_option(script: Script) -> None:
    assert "_base" not in said(script("train.py", "--help"))
    unknown = script("train.py", "data=flower")
    assert_refused(unknown, "did you mean flowers", "animals, csv")
    assert "_base" not in said(unknown)


def test_an_unknown_choice_lists_the_possible_ones(script: Script) -> None:
    assert_refused(
        script("train.py", "model=alexnet2"),
        r"there is no model=alexnet2 \(did you mean alexnet\?\); there are alexnet, alexnet_scratch, ",
    )


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("modle=alexnet", "model"),
        ("model.dropuot=0.5", "model.dropout"),
        ("trainer.max_epoch=3", "trainer.max_epochs"),
        ("visuals=[default,galery]", "gallery"),
        ("recipe=divers", "diverse"),
        ("experiment=flower_alexnet", "flowers_alexnet"),
        ("~visual", "visuals"),
    ],
)
def test_the_nearest_valid_name_is_suggested(wrong: str, meant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", [str(REPOSITORY / "train.py")])
    conf = str(REPOSITORY / "conf")
    with hydra.initialize_config_dir(conf, version_base="1.3"), pytest.raises(HydraException) as caught:
        hydra.compose("train", [wrong])
    assert f" (did you mean {meant}?); " in (text := explain(str(caught.value)))
    assert text.startswith("there is no ")


def test_an_option_that_is_added_twice_is_named(script: Script) -> None:
    assert_refused(
        script("train.py", "+trainer.max_epochs=3"), "trainer.max_epochs is an option already: write it without +"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["visuals=[filters"], r"the command line cannot be parsed: .*'name=\[a,b\]'"),
        (["-m", "optimizer.lr=interval(0.001,0.1)"], "an interval needs a search: add hparams_search=optuna"),
    ],
)
def test_hydras_messages_are_told_in_plain_words(arguments: list[str], said: str, script: Script) -> None:
    assert_refused(script("train.py", *arguments), said)


def test_a_mistake_ends_in_one_line(script: Script) -> None:
    done = script("train.py", *TINY, "visuals.filters.layers=[block7_conv1]")
    assert_refused(done, "unknown layer 'block7_conv1'", "block1_conv1")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train.py model.weights=nowhere.pth", "no weights file at nowhere.pth"),
        ("train.py data=folder data.root=nowhere", "data.root=nowhere: there is no such folder"),
        ("visualize.py ckpt=nowhere", "no checkpoint at nowhere; give a run folder, a .ckpt file or latest"),
        ("visualize.py ckpt=latest", "no run with a checkpoint below outputs"),
    ],
)
def test_a_missing_file_is_reported_before_torch_is_imported(script: Script, command: str, message: str) -> None:
    done = script(*command.split(), PYTHONPROFILEIMPORTTIME="1")
    assert_refused(done, message)
    assert "torch" not in done.stderr.split("import time:")[-1]
    assert not re.search(r"\|\s+torch$", done.stderr, re.MULTILINE)


def test_only_the_trainer_may_change_on_resume(script: Script) -> None:
    assert_refused(script("train.py", "resume=nowhere", "seed=3"), "seed=3 cannot be changed on resume")
    assert_refused(script("train.py", "resume=nowhere"), "not a run folder")
