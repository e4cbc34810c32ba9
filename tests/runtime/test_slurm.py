"""Two machines train bit for bit like one machine with two processes; ranks follow from Slurm's variables."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from filterscope.cli.sweeps import check_launcher
from filterscope.config.trainer_factory import build_trainer
from filterscope.errors import UserError
from run_files import weights_of
from tiny import REPOSITORY, TINY

Compose = Callable[..., dict[str, Any]]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
OVERRIDES = (
    *TINY,
    "data.num_test=0",
    "visuals=none",
    "data.num_val=31",
    "finetune=gradual",
    "finetune.release_epoch=1",
)


@contextmanager
def two_machines() -> Iterator[tuple[str, list[tuple[list[str], dict[str, str]]]]]:
    """Yield an address and, for each machine, its command prefix and its environment variables.

    They are two network namespaces joined by a cable, or where those are not to be had one machine twice.
    """
    names, cables = ("filterscope-a", "filterscope-b"), ("fscope-a", "fscope-b")

    def ip(*words: str) -> bool:
        done = subprocess.run(["ip", *words], capture_output=True, check=False)
        return done.returncode == 0

    try:
        made = bool(shutil.which("ip")) and all(ip("netns", "add", name) for name in names)
        made = made and ip("link", "add", cables[0], "type", "veth", "peer", "name", cables[1])
        for number, (name, cable) in enumerate(zip(names, cables, strict=True), start=1):
            made = made and ip("link", "set", cable, "netns", name)
            made = made and ip("-n", name, "addr", "add", f"10.231.77.{number}/24", "dev", cable)
            made = made and all(ip("-n", name, "link", "set", device, "up") for device in (cable, "lo"))
        if made:
            begun = [
                (["ip", "netns", "exec", name], {"GLOO_SOCKET_IFNAME": cable})
                for name, cable in zip(names, cables, strict=True)
            ]
            yield "10.231.77.1", begun
        else:
            yield "127.0.0.1", [([], {"GLOO_SOCKET_IFNAME": "lo"})] * 2
    finally:
        for name in names:
            ip("netns", "del", name)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_two_machines_train_the_same_weights_as_one_machine_with_two_processes(tmp_path: Path) -> None:
    script = str(REPOSITORY / "train.py")
    one = [*TORCHRUN, "--standalone", "--nproc-per-node=2", script, "trainer=ddp", "trainer.devices=2"]
    done = subprocess.run(
        [*one, *OVERRIDES, f"hydra.run.dir={tmp_path / 'one'}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr

    with two_machines() as (address, begun):
        place = [f"--master-addr={address}", f"--master-port={free_port()}"]
        machines = []
        for rank, (words, environment) in enumerate(begun):
            agent = [*TORCHRUN, "--nnodes=2", "--nproc-per-node=1", f"--node-rank={rank}", *place, script]
            chosen = ["trainer=multinode", "trainer.devices=1", *OVERRIDES, f"hydra.run.dir={tmp_path / 'two'}"]
            machines.append(
                subprocess.Popen(
                    [*words, *agent, *chosen], env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True
                )
            )
        for machine in machines:
            _, errors = machine.communicate(timeout=200)
            assert machine.returncode == 0, errors

    states = [weights_of(tmp_path / run) for run in ("one", "two")]
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


def test_ranks_follow_from_slurms_variables(composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "JOB_ID": "7",
        "JOB_NAME": "train",
        "NTASKS": "4",
        "NTASKS_PER_NODE": "2",
        "NNODES": "2",
        "PROCID": "3",
        "LOCALID": "1",
        "NODEID": "1",
        "JOB_NODELIST": "node[1-2]",
    }.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    cfg = composed("trainer=multinode", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true")
    trainer = build_trainer(cfg, tmp_path, {})
    assert (trainer.world_size, trainer.global_rank, trainer.local_rank, trainer.node_rank) == (4, 3, 1, 1)
    assert not trainer.is_global_zero


@pytest.mark.parametrize("name", ["slurm", "workers", "submitit_slurm"])
def test_a_launcher_that_is_not_installed_names_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [path for path in sys.path if "submitit" not in path])
    if any((Path(path) / "hydra_plugins" / "hydra_submitit_launcher").is_dir() for path in sys.path if path):
        pytest.skip("the extra is installed")
    with pytest.raises(UserError, match=rf'hydra/launcher={name} needs the extra "slurm": pip install'):
        check_launcher(["-m", f"hydra/launcher={name}"])


def test_hydras_own_launcher_needs_no_extra() -> None:
    check_launcher(["-m", "hydra/launcher=basic", "model=alexnet"])
