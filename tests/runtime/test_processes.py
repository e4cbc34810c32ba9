"""Signals to a process group spare forked processes, and a process ends with the one that started it."""

import os
import signal
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest

from filterscope.errors import UserError
from filterscope.runtime.processes import Ranks

GROUP = """
import os, signal, sys, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup` lets processes ignore it
from filterscope.runtime.processes import separate_forked_processes
from filterscope.runtime.signals import SIGNALS, stop_request
stop_request.install()
stop_request.deferred = True
separate_forked_processes()
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    os.close(writer)
    print("ready", flush=True)
    os.read(reader, 1)  # until the parent has got the signal
    os._exit(7)
while stop_request.requested is None:
    time.sleep(0.01)
os.close(writer)
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
import os, signal, subprocess, sys
if os.environ.get("WATCHED"):
    from filterscope.runtime.processes import exit_with_parent
    exit_with_parent()
    print("watching", flush=True)
    signal.pause()
else:
    from filterscope.runtime.processes import PARENT
    environment = {**os.environ, "WATCHED": "1", PARENT: str(os.getpid())}
    later = sys.argv[2] == "later"
    output = subprocess.PIPE if later else None
    child = subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[1]], env=environment, stdout=output)
    if later:
        child.stdout.readline()
    os._exit(0)
"""


@pytest.mark.parametrize("when", ["at once", "later"])
def test_a_process_ends_with_its_parent_even_if_that_died_before_the_watch(when: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PARENT_DIES, PARENT_DIES, when],
        capture_output=True, text=True, timeout=30, check=False,
    )  # the output is complete when the last process has ended  # fmt: skip
    assert "the process that started this one has ended" in done.stderr


@pytest.mark.parametrize("port", ["taken", "x", "70000"])
def test_a_port_that_is_not_free_is_said_before_other_ranks_are_started(
    port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = SimpleNamespace(creates_processes_externally=False)
    launcher = SimpleNamespace(num_processes=2, procs=[], cluster_environment=environment)
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        monkeypatch.setenv("MASTER_PORT", str(other.getsockname()[1]) if port == "taken" else port)
        with pytest.raises(UserError, match="is not a free port"):
            Ranks().watch(launcher)
