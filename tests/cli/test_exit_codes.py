"""The behaviour that a shell or a batch system sees: exit codes, error lines, run folders, requeued jobs."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from filterscope.cli.error_messages import FAULT, describe_error
from filterscope.cli.resume_arguments import resume_arguments, store_config
from filterscope.data.loader import ImageLoader
from filterscope.errors import UserError
from filterscope.runtime.slurm import JOB_FILE, find_requeued_run, record_job
from tiny import REPOSITORY, TINY

Script = Callable[..., subprocess.CompletedProcess[str]]
LONG = ("visuals=filters", "trainer.max_epochs=400")


def until(there: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


def begun(tmp_path: Path, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(REPOSITORY / "train.py"), *overrides, *TINY, *LONG]
    return subprocess.Popen(command, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_ctrl_c_saves_and_prints_the_command_that_resumes(script: Script, tmp_path: Path) -> None:
    process = begun(tmp_path)
    until(lambda: any(tmp_path.glob("outputs/*/checkpoints/last.ckpt")), process)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 130, said
    assert "Traceback" not in said
    found = re.search(r"^stopped by SIGINT; to resume: python train\.py resume=(\S+)$", said, re.MULTILINE)
    assert found, said
    rows = len((tmp_path / found[1] / "metrics.csv").read_text().splitlines())
    done = script("train.py", f"resume={found[1]}", f"trainer.max_epochs={rows}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len((tmp_path / found[1] / "metrics.csv").read_text().splitlines()) == rows + 2
    assert "[filterscope][INFO]" not in done.stdout  # the log looks as it did


def test_ctrl_c_ends_the_sweep_with_its_running_job(tmp_path: Path) -> None:
    process = begun(tmp_path, "-m", "seed=1,2,3")
    until(lambda: any(tmp_path.glob("outputs/*/0_*/metrics.csv")), process)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert not list(tmp_path.glob("outputs/*/1_*"))


def test_a_requeued_slurm_job_resumes_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(REPOSITORY / "train.py")])
    given = ["model=vgg16", "seed=3", "trainer.max_epochs=5"]
    for name in ("a", "b"):
        stored = tmp_path / "outputs" / name / ".hydra"
        stored.mkdir(parents=True)
        (stored / "config.yaml").write_text("{data: {}, model: {}, trainer: {}, callbacks: {}}")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    record_job(tmp_path / "outputs" / "a", ["hydra.mode=RUN", *given])
    record_job(tmp_path / "outputs" / "b", [*given, "seed=4"])
    assert find_requeued_run(given) is None
    assert resume_arguments(given) == given
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert find_requeued_run(given) == tmp_path / "outputs" / "a"
    assert f"++resume='{tmp_path}/outputs/a'" in resume_arguments(given)
    assert resume_arguments(given)[-1] == "trainer.max_epochs=5"
    assert find_requeued_run(["model=vgg11"]) is None
    assert find_requeued_run(["-m", *given]) is None
    monkeypatch.setenv("SLURM_JOB_ID", "78")
    assert find_requeued_run(given) is None
    (tmp_path / "outputs" / "a" / JOB_FILE).write_text("{")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert find_requeued_run(given) is None
    assert json.loads((tmp_path / "outputs" / "b" / JOB_FILE).read_text())["job"].startswith("77")


@pytest.mark.parametrize("name", ["a b", "a'b", "ä,=[]{}", 'q"uote', "back\\slash", "$dollar", "#1", "\\'"])
def test_a_run_folder_with_any_name_can_be_resumed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    monkeypatch.setattr("sys.argv", [str(REPOSITORY / "train.py")])
    stored = tmp_path / name / ".hydra"
    stored.mkdir(parents=True)
    (stored / "config.yaml").write_text("{data: {}, model: {}, trainer: {}, callbacks: {}}")
    given = resume_arguments([f"resume={tmp_path / name}"])
    folder = next(each for each in given if each.startswith("hydra.run.dir="))
    assert OverridesParser.create().parse_override(folder).value() == str(tmp_path / name)


def test_the_run_to_resume_is_named_by_its_folder_its_checkpoint_or_as_the_latest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [str(REPOSITORY / "train.py")])
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("new", "old")):
        run = tmp_path / "outputs" / name
        (run / ".hydra").mkdir(parents=True)
        (run / "checkpoints").mkdir()
        (run / ".hydra" / "config.yaml").write_text("{data: {}, model: {}, trainer: {}, callbacks: {}}")
        (run / "checkpoints" / "last.ckpt").touch()
        os.utime(run / "checkpoints" / "last.ckpt", (1000 - number, 1000 - number))
    for asked in ("outputs/new", "outputs/new/", "outputs/new/checkpoints/last.ckpt", "latest"):
        assert f"hydra.run.dir='{tmp_path}/outputs/new'" in resume_arguments([f"resume={asked}"])
    monkeypatch.chdir(tmp_path / "outputs")
    with pytest.raises(UserError, match="there is no run with a checkpoint below outputs"):
        resume_arguments(["resume=latest"])


def test_only_the_trainer_and_the_place_of_the_data_may_differ_on_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [str(REPOSITORY / "train.py")])
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("{data: {}, model: {}, trainer: {}, callbacks: {}}")
    changed = ["data.root=elsewhere", "trainer.max_epochs=9"]
    assert resume_arguments([f"resume={tmp_path}", *changed])[-2:] == changed
    for other in ("data.seed=1", "data.root_2=x", "data=mnist", "~data.root"):
        with pytest.raises(
            UserError, match=r"cannot be changed on resume: .*only trainer\.… and data\.root may differ"
        ):
            resume_arguments([f"resume={tmp_path}", other])


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a/last.ckpt"), "a/last.ckpt: No space left on device; make"),
        (PermissionError(errno.EACCES, "Permission denied", "outputs"), r"outputs: Permission denied; choose a place"),
        (OSError(errno.EROFS, "Read-only file system", "outputs"), r"outputs: Read-only file system; choose a place"),
        (OSError(errno.EMFILE, "Too many open files", "a.jpg"), "too many open files: a smaller data.num_workers"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity …\nmore"),
         r"the GPU is out of memory \(CUDA out of memory\); a smaller data\.batch_size"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
         "the machine is out of memory"),
        (MemoryError(), "the machine is out of memory; a smaller"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "the machine is out of memory"),
        (RuntimeError("can't start new thread"), "no more processes or threads are allowed"),
        (RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1"),
         "another process of this run has ended"),
        (torch.distributed.DistNetworkError("The client socket has timed out"),
         "another process of this run has ended"),
        (UserError("data.root=x: there is none"), "data.root=x: there is none"),
    ],
)  # fmt: skip
def test_a_fault_of_the_machine_is_one_line_that_says_what_to_do(error: BaseException, line: str) -> None:
    said = describe_error(error)
    assert said is not None
    assert re.search(line, said), said
    assert "\n" not in said


def test_a_setting_that_lightning_refuses_is_one_line() -> None:
    from pytorch_lightning.utilities.exceptions import MisconfigurationException

    error = MisconfigurationException("You requested 0.001 of the `val_dataloader`.\nTry `limit_val_batches=0.5`.")
    assert describe_error(error) == f"trainer: {error}"


def test_a_stored_path_becomes_absolute_and_a_url_stays_one(tmp_path: Path) -> None:
    config = {"data": {"root": "https://own.example/shards", "cache": "cache"}}
    store_config(config, config, folder=tmp_path, cwd=Path("/work place"))
    assert config["data"] == {"root": "https://own.example/shards", "cache": "/work place/cache"}


def test_what_a_callback_of_lightning_refuses_is_one_line() -> None:
    from pytorch_lightning.callbacks import EarlyStopping

    with pytest.raises(RuntimeError) as caught:
        EarlyStopping("val/nothing")._run_early_stopping_check(SimpleNamespace(fast_dev_run=False, callback_metrics={}))
    assert describe_error(caught.value).startswith("callbacks: Early stopping conditioned on metric `val/nothing`")


def test_a_bug_is_no_fault_of_the_machine() -> None:
    assert describe_error(KeyError("layer")) is None
    assert describe_error(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None


def test_a_full_disk_is_reported_instead_of_torchs_own_error() -> None:
    error = RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")
    assert "is the disk full?" in str(describe_error(error))
    error.__context__ = OSError(errno.ENOSPC, "No space left on device", "last.ckpt")
    assert str(describe_error(error)).startswith("last.ckpt: No space left on device; make room")


# In a process of its own: torch raises a loader process's death wherever the main one is, and goes on doing so.
LOADING = """
import os, signal, sys
from filterscope.data.folder import FolderDataModule
from filterscope.cli.error_messages import FAULT, describe_error

data = FolderDataModule(root=sys.argv[1], num_workers=1, batch_size=2, image_size=16)
data.setup()
try:
    batches = iter(data.train_dataloader())
    next(batches)
    listed = open(f"/proc/self/task/{os.getpid()}/children").read().split()
    (worker,) = [int(each) for each in listed if "python" in open(f"/proc/{each}/cmdline").read()]
    os.kill(worker, signal.SIGKILL)
    list(batches)
except BaseException as error:
    print(describe_error(error), flush=True)
os._exit(0)
"""


def test_the_signal_of_a_dead_loader_does_not_interrupt_its_error_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection may break before the signal arrives; PyTorch's signal handler then raises an error anywhere."""
    from torch.utils.data import DataLoader

    def die(_signal: int, _frame: object) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    def broken(_self: object) -> Iterator[object]:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        raise ConnectionResetError(104, "Connection reset by peer")
        yield

    monkeypatch.setattr(DataLoader, "__iter__", broken)
    before = signal.signal(signal.SIGALRM, die)
    try:
        with pytest.raises(UserError, match=r"died \(DataLoader worker \(pid 7\) is killed.*smaller data\.num_workers"):
            next(iter(ImageLoader([])))
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)  # it has come
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_killed_loader_process_is_reported_in_one_line(tmp_path: Path) -> None:
    from PIL import Image

    for number in range(24):
        folder = tmp_path / "ab"[number % 2]
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (20, 20)).save(folder / f"{number}.png")
    command = [sys.executable, "-c", LOADING, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert re.search(r"a loader process died \(.*; .*a smaller data\.num_workers", done.stdout), (
        done.stdout + done.stderr
    )


FAULTY = """
import sys
from filterscope.cli import main, resume_arguments
def broken(arguments): raise ZeroDivisionError("unforeseen")
main.resume_arguments = broken
main.run_script(lambda: None)
"""


@pytest.mark.parametrize("full", [False, True])
def test_an_unforeseen_error_is_one_line_and_a_traceback_on_demand(full: bool) -> None:
    environment = {**os.environ, **({"HYDRA_FULL_ERROR": "1"} if full else {})}
    done = subprocess.run([sys.executable, "-c", FAULTY], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    if full:
        assert "Traceback" in done.stderr
    else:
        assert done.stderr.startswith(f"{FAULT}: ZeroDivisionError: unforeseen")
        assert len(done.stderr.splitlines()) == 1
