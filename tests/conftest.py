import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Tests run in parallel on tiny tensors; more threads than cores would make them many times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hydra
import pytest
import torch
from pytorch_lightning.utilities import rank_zero_only

from filterscope.cli.main import resolve_config
from serving import serving
from tiny import REPOSITORY


@pytest.fixture(scope="session")
def real() -> Path:
    """Return the folder of the real data and weights."""
    folder = os.environ.get("FILTERSCOPE_REAL")
    if not folder:
        pytest.skip("needs real data and weights: FILTERSCOPE_REAL is not set")
    return Path(folder)


@pytest.fixture(autouse=True)
def this_process() -> Iterator[None]:
    """Begin each test with the same random numbers, and reset after it what a `Trainer` sets for the whole process.

    That is its rank, and the launcher's variables.
    """
    torch.manual_seed(0)
    rank, variables = getattr(rank_zero_only, "rank", 0), dict(os.environ)
    yield
    rank_zero_only.rank = rank
    for name in os.environ.keys() - variables.keys():
        del os.environ[name]
    os.environ.update(variables)


Composed = dict[str, Any]


@pytest.fixture
def composed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Composed]:
    """Compose a configuration like the scripts: `composed("data=mnist", config="visualize")`."""

    def compose(*overrides: str, config: str = "train") -> Composed:
        with hydra.initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
            return resolve_config(hydra.compose(config, list(overrides)))

    monkeypatch.delenv("FILTERSCOPE_DATA", raising=False)
    return compose


Script = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Run a script like a user, with its run folders below `tmp_path`."""

    def run(name: str, *overrides: str, timeout: float = 300, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(REPOSITORY / name), *overrides],
            cwd=tmp_path,
            env={**os.environ, "PYTHONWARNINGS": "default", "COLUMNS": "200", **env},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder, and the address under which a server on this machine serves its files."""
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    folder = tmp_path / "served"
    folder.mkdir()
    with serving(folder) as address:
        yield folder, address
