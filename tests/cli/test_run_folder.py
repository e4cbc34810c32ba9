"""The folder of a run: made once, locked, never overwritten, and no way out of it."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from filterscope.cli import run_folder
from filterscope.cli.run_folder import claim_folder, unique_dir
from filterscope.errors import UserError
from filterscope.storage import atomic

CLAIM = """
import os, sys, time
from pathlib import Path
from filterscope.errors import UserError
from filterscope.cli.run_folder import claim_folder
try:
    claim_folder(Path(sys.argv[1]), resume=True)
except UserError as error:
    sys.exit(str(error))
if os.fork() == 0:  # a loader process, which may outlive its parent for some seconds
    time.sleep(5)
    os._exit(0)
print("claimed", flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def first_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(run_folder, "_locks", {})
    monkeypatch.setattr(atomic, "_bounds", [])


def test_runs_of_the_same_second_get_different_folders(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = sorted(pool.map(lambda _: run_folder._make_unique(tmp_path / "outputs" / "now_flowers"), range(40)))
    assert len(set(made)) == 40
    assert made[:2] == [str(tmp_path / "outputs" / "now_flowers"), str(tmp_path / "outputs" / "now_flowers_10")]
    once = unique_dir(str(tmp_path / "later"))
    assert unique_dir(str(tmp_path / "later")) == once  # the same process asks more than once


def test_a_child_process_of_a_run_makes_and_claims_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert unique_dir(str(tmp_path / "run")) == str(tmp_path / "run")
    claim_folder(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("spelled", ["run", "run/../run", "./run/", "link"])
@pytest.mark.parametrize("held", ["metrics.csv", "checkpoints", "multirun.yaml"])
def test_a_folder_that_holds_a_run_or_a_sweep_is_not_overwritten(
    held: str, spelled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    Path("link").symlink_to("run")
    (tmp_path / "run" / held).touch()
    before = sorted(Path("run").iterdir())
    with pytest.raises(UserError, match=r"holds a (run|sweep) already: .*choose another hydra"):
        claim_folder(Path(spelled))
    assert sorted(Path("run").iterdir()) == before
    claim_folder(Path(spelled), resume=True)


def test_a_folder_is_written_by_one_process_at_a_time_and_free_when_that_has_died(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CLAIM, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "claimed\n"
        second = subprocess.run(command, capture_output=True, text=True, check=False)
        assert second.returncode == 1
        assert f"{tmp_path} is in use by process {first.pid} on" in second.stderr
        first.kill()
        first.wait()
        claim_folder(tmp_path, resume=True)  # although its forked process lives on
        assert (tmp_path / run_folder.LOCK).read_text().startswith(f"process {os.getpid()} on")


LINKS: dict[str, Callable[[Path, Path], None]] = {
    "an event file": lambda run, user: (run / "events.out.tfevents.1.a").symlink_to(user / "file"),
    "the log": lambda run, user: (run / "train.log").symlink_to(user / "file"),
    "the folder of checkpoints": lambda run, user: (run / "checkpoints").symlink_to(user),
    "a folder of pictures": lambda run, user: (run / "pictures" / "filters").symlink_to(user),
    "Hydra's folder": lambda run, user: (run / ".hydra").symlink_to(user),
    "the lock": lambda run, user: (run / ".lock").symlink_to(user / "file"),
    "a hard link as the log": lambda run, user: (run / "train.log").hardlink_to(user / "file"),
    "a hard link as an event file": lambda run, user: (run / "events.out.tfevents.1.a").hardlink_to(user / "file"),
    "a hard link as the lock": lambda run, user: (run / ".lock").hardlink_to(user / "file"),
    "a checkpoint that is a pipe": lambda run, _: os.mkfifo(run / "pictures" / "best.ckpt"),
}


@pytest.mark.parametrize("what", LINKS)
def test_a_run_folder_with_a_way_out_is_refused(what: str, tmp_path: Path) -> None:
    run, user = tmp_path / "run", tmp_path / "user"
    (run / "pictures").mkdir(parents=True)
    user.mkdir()
    (user / "file").write_text("mine")
    (run / "pictures" / "inside.png").symlink_to(run / "pictures")  # leads nowhere else
    LINKS[what](run, user)
    with pytest.raises(
        UserError, match=r"is a link that leads out of the run folder|is a pipe or a device|is a hard link"
    ):
        claim_folder(run, resume=True)
    assert [(path.name, path.read_text()) for path in user.iterdir()] == [("file", "mine")]


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(run_folder.fcntl, "lockf", refuse)
    claim_folder(tmp_path / "run")
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path / 'run'} cannot be locked ({os.strerror(code)})")


def test_pictures_that_are_hard_links_are_replaced_and_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "run" / "pictures").mkdir(parents=True)
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "run" / "pictures" / "a.png").hardlink_to(tmp_path / "mine")
    claim_folder(tmp_path / "run", resume=True)
    atomic.write_file(tmp_path / "run" / "pictures" / "a.png", b"other")
    assert (tmp_path / "mine").read_text() == "mine"


def test_nothing_is_written_through_a_link_that_appears_later(tmp_path: Path) -> None:
    run, user = tmp_path / "run", tmp_path / "user"
    user.mkdir()
    claim_folder(run)
    (run / "tables").symlink_to(user)  # of a visual of another package, whose tags are not known in advance
    with pytest.raises(UserError, match="leads out of"):
        atomic.write_file(run / "tables" / "epoch_001.csv", b"")
    assert not list(user.iterdir())
    atomic.write_file(run / "health" / "epoch_001.csv", b"")
