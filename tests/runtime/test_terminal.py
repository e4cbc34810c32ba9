"""Printing never ends a run, and an unforeseen error is one line; signals to a group spare forked processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from filterscope.cli.error_messages import FAULT
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


FAULTY = """
import sys
from filterscope.cli import main, resume_arguments
def broken(arguments): raise KeyError("unforeseen")
main.resume_arguments = broken
main.run_script(lambda: None)
"""


@pytest.mark.parametrize("full", [False, True])
def test_an_unforeseen_error_is_one_line_and_a_traceback_on_demand(full: bool) -> None:
    environment = {**os.environ, **({"HYDRA_FULL_ERROR": "1"} if full else {})}
    code = FAULTY.replace('KeyError("unforeseen")', 'ZeroDivisionError("unforeseen")')
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    if full:
        assert "Traceback" in done.stderr
    else:
        assert done.stderr.startswith(f"{FAULT}: ZeroDivisionError: unforeseen")
        assert len(done.stderr.splitlines()) == 1


GROUP = """
import os, signal, sys, time
from filterscope.runtime.processes import separate_forked_processes
from filterscope.runtime.signals import stop_request
stop_request.install()
stop_request.deferred = True
separate_forked_processes()
child = os.fork()
if child == 0:
    time.sleep(3)
    os._exit(7)
print("ready", flush=True)
while stop_request.requested is None:
    time.sleep(0.01)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), stop_request.requested)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_process_group_spares_forked_processes(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", GROUP], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.killpg(process.pid, number)
        assert process.stdout.read().split() == ["7", str(int(number))]


PARENT_DIES = """
import os, subprocess, sys, time
if os.environ.get("WATCHED"):
    from filterscope.runtime.processes import exit_with_parent
    exit_with_parent()
    print("watching", flush=True)
    time.sleep(60)
else:
    from filterscope.runtime.processes import PARENT
    environment = {**os.environ, "WATCHED": "1", PARENT: str(os.getpid())}
    subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[1]], env=environment)
    time.sleep(float(sys.argv[2]))
    os._exit(0)
"""


@pytest.mark.parametrize("seconds", ["0", "4"])
def test_a_process_ends_with_its_parent_even_if_that_died_before_the_watch(seconds: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PARENT_DIES, PARENT_DIES, seconds],
        capture_output=True, text=True, timeout=30, check=False,
    )  # the output is complete when the last process has ended  # fmt: skip
    assert "the process that started this one has ended" in done.stderr
