"""How many cores a process may use: its affinity and the quota of its container; how threads wait."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from filterscope.data.folder import FolderDataModule
from filterscope.runtime.cores import available_cores, limit_threads, sleep_while_waiting


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(8)), raising=False)


def cores_of(folder: Path, membership: str, **files: str) -> int:
    """Return the available cores where a process is in control groups with these files."""
    (folder / "own").write_text(membership)
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return available_cores(cgroups=folder, own=folder / "own")


def test_without_a_quota_the_affinity_counts(tmp_path: Path) -> None:
    assert cores_of(tmp_path, "0::/\n", cpu_DOT_max="max 100000\n") == 8
    assert available_cores(cgroups=tmp_path, own=tmp_path / "nowhere") == 8


@pytest.mark.parametrize(("quota", "expected"), [("50000", 1), ("150000", 2), ("400000", 4), ("6400000", 8)])
def test_the_quota_of_a_container_counts_in_whole_cores(quota: str, expected: int, tmp_path: Path) -> None:
    assert cores_of(tmp_path, "0::/\n", cpu_DOT_max=f"{quota} 100000\n") == expected


def test_the_smallest_quota_of_nested_groups_counts(tmp_path: Path) -> None:
    files = {"outer__cpu_DOT_max": "300000 100000", "outer__inner__cpu_DOT_max": "max 100000"}
    assert cores_of(tmp_path, "0::/outer/inner\n", **files) == 3


def test_the_first_version_of_control_groups_is_read_too(tmp_path: Path) -> None:
    files = {"cpu,cpuacct__box__cpu.cfs_quota_us": "200000", "cpu,cpuacct__box__cpu.cfs_period_us": "100000"}
    assert cores_of(tmp_path, "4:memory:/box\n3:cpu,cpuacct:/box\n", **files) == 2
    unlimited = {**files, "cpu,cpuacct__box__cpu.cfs_quota_us": "-1"}
    assert cores_of(tmp_path, "3:cpu,cpuacct:/box\n", **unlimited) == 8


def test_loader_workers_and_threads_respect_the_quota(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in ("runtime.cores", "data.datamodule"):
        monkeypatch.setattr(f"filterscope.{module}.available_cores", lambda: 2)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(5):
            Image.new("RGB", (16, 16), (number, 10, 90)).save(tmp_path / name / f"{number}.png")
    data = FolderDataModule(root=str(tmp_path), image_size=16)
    data.setup()
    assert data.train_dataloader().num_workers == 2
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        monkeypatch.setenv("OMP_NUM_THREADS", "4")
        limit_threads()
        assert torch.get_num_threads() == 4, "the user has chosen"
        monkeypatch.delenv("OMP_NUM_THREADS")
        limit_threads()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_choice_of_the_user_about_waiting_threads_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    sleep_while_waiting()
    assert os.environ["GOMP_SPINCOUNT"] == "1000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    sleep_while_waiting()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    sleep_while_waiting()
    assert "GOMP_SPINCOUNT" not in os.environ


def test_bfloat16_is_not_chosen_where_torch_may_not_use_avx512() -> None:
    code = "from filterscope.runtime.cores import computes_in_bf16; print(computes_in_bf16())"
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "avx2"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
