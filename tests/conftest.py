import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def real() -> Path:
    """Where the real data and weights lie."""
    folder = os.environ.get("FILTERSCOPE_REAL")
    if not folder:
        pytest.skip("needs real data and weights: FILTERSCOPE_REAL is not set")
    return Path(folder)


Script = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Run a script as a user would, with its run folders below `tmp_path`."""

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
