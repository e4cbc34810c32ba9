"""Printing never ends a run, whatever its output is connected to."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tiny import REPOSITORY

PRINT = r"""
import os, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from filterscope.runtime.terminal import print_safely, protect_output
protect_output()
file = open(sys.argv[1], "w")  # must not take the place of a closed output
for _ in range(3000):
    print("a line with letters: \u00d7 \u2026 \u4e2d")
    print("another", file=sys.stderr)
print_safely("from a signal handler")
file.write("done")
"""

OUTPUTS = {
    "nobody reads it": "2>&1 | head -n 1",
    "it is full": "> /dev/full 2> /dev/full",
    "it is closed": ">&- 2>&-",
    "it knows ASCII only": "> /dev/null",
}


@pytest.mark.parametrize("what", OUTPUTS)
def test_output_that_cannot_be_written_ends_nothing(what: str, tmp_path: Path) -> None:
    command = f'"{sys.executable}" -c "$0" "$1" "$2" {OUTPUTS[what]}; exit ${{PIPESTATUS[0]}}'
    arguments = [PRINT, str(tmp_path / "file"), str(REPOSITORY / "src")]
    ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run(["bash", "-c", command, *arguments], env=ascii_only, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert (tmp_path / "file").read_text() == "done"
