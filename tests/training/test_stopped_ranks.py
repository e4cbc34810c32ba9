"""Two processes that are stopped inside an epoch and gone on with end with the bits of ones that never were."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from run_files import weights_of
from tiny import REPOSITORY, TINY

KNOBS = (
    *(knob for knob in TINY if not knob.startswith(("trainer.", "data.batch_size", "data.num_test"))),
    "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true",
    "trainer.enable_progress_bar=false", "trainer.max_epochs=3", "data.batch_size=6", "data.num_test=0",
    "visuals=filters",
)  # fmt: skip
STEPS = 5  # of an epoch: 60 images, 6 at once in each of two processes
STEP = STEPS + 2  # in the middle of the second epoch
SLURM = {
    "SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_NNODES": "1", "SLURM_NODEID": "0",
}  # fmt: skip

# Runs the whole script in two processes, start after start, forked from one that has imported everything; or is one of
# the two that torchrun begins.
WORKER = """
import json, os, runpy, sys, time, traceback
from pathlib import Path
os.environ["SLURM_JOB_ID"] = "4711"  # only then is SIGUSR1 a wish to stop
import torch
from filterscope.config import factory, trainer_factory
from filterscope.training import results
from filterscope.runtime.signals import stop_request
from filterscope.training.module import FinetuneModule
del os.environ["SLURM_JOB_ID"]

compute = FinetuneModule.training_step

def be(start):
    stop = start["stop"]
    def training_step(self, batch, index):
        if stop and self.global_step == stop["step"]:
            if not stop["launcher"]:
                os.kill(os.getpid(), stop["signal"])
            elif self.global_rank == 0:
                os.kill(os.getppid(), stop["signal"])
            while stop_request.requested is None:
                time.sleep(0.01)
        return compute(self, batch, index)
    FinetuneModule.training_step = training_step
    sys.argv = [sys.argv[1] + "/train.py", *start["arguments"]]
    runpy.run_path(sys.argv[0], run_name="__main__")

def rank(start, environment, log):
    code = 1
    try:
        said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(said, 1), os.dup2(said, 2)
        os.environ.update(environment)
        be(start)
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)

def ended(children):
    # One that ends badly leaves the other waiting.
    codes = {}
    while len(codes) < len(children):
        child, status = os.wait()
        codes[child] = os.waitstatus_to_exitcode(status)
        if codes[child] not in (0, 138, 143):
            for other in set(children) - codes.keys():
                os.kill(other, 9)
    return [codes[child] for child in children]

starts, came = json.loads(sys.argv[2]), []
if "WORLD_SIZE" in os.environ:
    be(starts[0])
    sys.exit()
for number, start in enumerate(starts):
    log, children = Path(f"log{number}"), []
    for environment in start["environments"]:
        children.append(os.fork())
        if not children[-1]:
            rank(start, environment, log)
    codes = ended(children)
    midway = Path(start["folder"], "checkpoints", "midway.ckpt")
    step = torch.load(midway, weights_only=True)["global_step"] if midway.is_file() else None
    came.append({"codes": codes, "midway": step, "said": log.read_text()})
Path("came.json").write_text(json.dumps(came))
"""


def begun(
    *arguments: str, folder: str, signal: int | None = None, launcher: bool = False, slurm: Mapping[str, str] = {}
) -> dict[str, Any]:
    """Describe a start of the script in two processes, and the signal that ends it inside an epoch."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "GLOO_SOCKET_IFNAME": "lo"
        }  # fmt: skip
    size = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "x"}
    ranks = [
        meeting | slurm | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank}
        if slurm
        else meeting | size | {"RANK": rank, "LOCAL_RANK": rank}
        for rank in "01"
    ]
    stop = None if signal is None else {"step": STEP, "signal": signal, "launcher": launcher}
    return {"arguments": arguments, "stop": stop, "environments": ranks, "folder": folder}


def run(place: Path, *starts: dict[str, Any], launcher: bool = False) -> list[dict[str, Any]]:
    """Run these starts one after the other and return what each came to; a launcher's processes only say something."""
    (place / "worker.py").write_text(WORKER)
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"] if launcher else []
    done = subprocess.run(
        [sys.executable, *torchrun, str(place / "worker.py"), str(REPOSITORY), json.dumps(starts)],
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    if launcher:
        return [{"said": done.stdout}]
    assert done.returncode == 0, done.stdout
    came: list[dict[str, Any]] = json.loads((place / "came.json").read_text())
    return came


def assert_alike(one: Path, other: Path) -> None:
    """Assert that two runs ended with the same weights, tables and pictures."""
    weights, expected = (weights_of(run) for run in (one, other))
    assert weights.keys() == expected.keys()
    for name, tensor in weights.items():
        assert torch.equal(tensor, expected[name]), name
    files, expected_files = (
        {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.suffix in (".csv", ".png")}
        for run in (one, other)
    )
    assert files == expected_files


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a program that notes what Slurm is asked for."""
    place = tmp_path_factory.mktemp("ranks")
    (place / "bin").mkdir()
    (place / "bin" / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> "{place}/asked"\n')
    (place / "bin" / "scontrol").chmod(0o755)
    return place


@pytest.fixture(scope="module")
def came(place: Path) -> list[dict[str, Any]]:
    """Return what five starts came to: one run that nothing stops, and two that are stopped and gone on with."""
    slurm = SLURM | {"PATH": f"{place / 'bin'}:{os.environ['PATH']}"}
    job = (*KNOBS, "hydra.run.dir=job")
    return run(
        place,
        begun(*KNOBS, "hydra.run.dir=whole", folder="whole"),
        begun(*KNOBS, "hydra.run.dir=run", folder="run", signal=15),
        begun("resume=run", folder="run"),
        begun(*job, folder="job", signal=10, slurm=slurm),
        begun(*job, folder="job", slurm=slurm | {"SLURM_RESTART_COUNT": "1"}),
    )


def test_two_ranks_that_were_told_to_stop_go_on_as_if_nothing_had_been(came: list[dict[str, Any]], place: Path) -> None:
    whole, stopped, resumed = came[:3]
    assert whole["codes"] == [0, 0], whole["said"]
    assert stopped["codes"] == [143, 143], stopped["said"]
    assert STEPS < stopped["midway"] < 2 * STEPS
    assert stopped["said"].count("stopped by SIGTERM; to resume: python train.py resume=run") == 1
    assert resumed["codes"] == [0, 0], resumed["said"]
    assert_alike(place / "run", place / "whole")


def test_a_job_that_slurm_preempts_asks_for_its_next_start_and_goes_on_by_itself(
    came: list[dict[str, Any]], place: Path
) -> None:
    preempted, again = came[3:]
    assert preempted["codes"] == [138, 138], preempted["said"]
    assert STEPS < preempted["midway"] < 2 * STEPS
    assert (place / "asked").read_text() == "requeue 4711\n"
    assert again["codes"] == [0, 0], again["said"]
    assert_alike(place / "job", place / "whole")


def test_torchrun_that_is_told_to_stop_lets_its_ranks_save(came: list[dict[str, Any]], place: Path) -> None:
    assert came[0]["codes"] == [0, 0]
    (stopped,) = run(
        place, begun(*KNOBS, "hydra.run.dir=torchrun", folder="torchrun", signal=15, launcher=True), launcher=True
    )
    assert "stopped by SIGTERM; to resume: python train.py resume=torchrun" in stopped["said"], stopped["said"]
    assert (place / "torchrun" / "checkpoints" / "midway.ckpt").is_file()
    (resumed,) = run(place, begun("resume=torchrun", folder="torchrun"))
    assert resumed["codes"] == [0, 0], resumed["said"]
    assert_alike(place / "torchrun", place / "whole")
