"""Run the command line as people do: folders in use, odd stops and resumes, and files that ask for too much memory."""

import os
import resource
import runpy
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faults_runs import REPOSITORY, differences
from report import Report

from filterscope.cli.error_messages import FAULT
from test_hostile import BOMBS
from tiny import TINY

MEGABYTES = 1000  # that refusing a file may take
SECONDS = 10

START = (*TINY, "visuals=filters")


@dataclass
class Command:
    """A script in a process forked from this one, in a session of its own.

    Attributes:
        folder: where it is started.
        arguments: of the script.
        script: train or visualize.
        before: called in the process first, for limits and another user.
        environment: variables that are set; if there are any, Python is started anew.
        anew: start Python anew, which takes seconds.
        seconds_allowed: after which its processes are killed (exit code -9).
    """

    folder: Path
    arguments: Sequence[str]
    script: str = "train"
    before: Callable[[], object] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    anew: bool = False
    seconds_allowed: float = 300

    def __post_init__(self) -> None:
        self.begun = time.monotonic()
        self.output = self.folder / f"output_{time.monotonic_ns()}"
        self.process = os.fork()
        if self.process == 0:
            self._execute()

    def wait(self) -> "Command":
        """Wait for the end; afterwards `code`, `seconds`, `megabytes` and `text` describe it."""
        if hasattr(self, "code"):
            return self
        timer = threading.Timer(self.begun + self.seconds_allowed - time.monotonic(), self._kill)
        timer.start()
        _, status, used = os.wait4(self.process, 0)
        timer.cancel()
        timer.join()
        self.code, self.megabytes = os.waitstatus_to_exitcode(status), used.ru_maxrss / 1024
        self.seconds, self.text = time.monotonic() - self.begun, self.output.read_text(errors="replace")
        return self

    def left(self) -> list[int]:
        """Return the processes of its group or session that live on after 15 seconds, and kill them."""
        for _ in range(150):
            living = [each for each in map(int, filter(str.isdigit, os.listdir("/proc"))) if self._owns(each)]  # noqa: PTH208
            if not living:
                return []
            time.sleep(0.1)
        for each in living:
            os.kill(each, signal.SIGKILL)
        return living

    def _owns(self, process: int) -> bool:
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return False
        return state[0] != "Z" and int(state[3]) == self.process

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process, signal.SIGKILL)

    def _execute(self) -> None:
        code = 1
        try:
            os.setsid()
            os.chdir(self.folder)
            file = os.open(self.output, os.O_WRONLY | os.O_CREAT)
            os.dup2(file, 1)
            os.dup2(file, 2)
            sys.stdout, sys.stderr = (open(each, "w", closefd=False) for each in (1, 2))  # noqa: SIM115
            sys.argv = [str(REPOSITORY / f"{self.script}.py"), *self.arguments]
            if self.before is not None:
                self.before()
            if self.anew or self.environment:
                os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | dict(self.environment))
            warnings.simplefilter("ignore")  # that the module has been imported already
            runpy.run_module(f"filterscope.cli.{self.script}", run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def resume(report: Report, place: Path, *, kills: int) -> None:
    """Start into folders in use, stop and resume in every way that is not a plain kill, and compare the results."""
    place = place / "resume"
    place.mkdir()
    reference = Command(place, [*START, "hydra.run.dir=reference"]).wait()
    before = (place / "reference" / "metrics.csv").read_bytes()
    wrong: list[str] = []

    def expect(name: str, command: Command, code: int, words: str = "") -> None:
        command.wait()
        good = command.code == code and words in command.text
        if not good or "Traceback" in command.text or FAULT in command.text:
            wrong.append(name)
            print(f"{name}: {command.code} {command.text[-300:]}", flush=True)

    for spelled in ("hydra.run.dir=reference", "++hydra.run.dir=reference", "hydra.run.dir=reference/../reference"):
        expect(spelled, Command(place, [*START, spelled]), 2, "holds a run already")
    expect("a relative path", Command(place, [*START, "hydra.run.dir=a", "++note=${now:%Y}"]), 0)
    expect("more epochs", Command(place, ["resume=a", "trainer.max_epochs=3"]), 0)
    expect("no folder of Hydra", Command(place, [*START, "hydra.run.dir=b", "hydra.output_subdir=null"]), 0)
    expect("more epochs of that", Command(place, ["resume=b", "trainer.max_epochs=3"]), 0)
    expect("a sweep", Command(place, ["-m", *START, "seed=1,2", "hydra.sweep.dir=c"]), 0)
    expect(
        "a second sweep", Command(place, ["-m", *START, "seed=3,4", "hydra.sweep.dir=c"]), 2, "holds a sweep already"
    )
    twice = [Command(place, ["resume=a", "trainer.max_epochs=9"]) for _ in range(2)]
    codes = sorted(each.wait().code for each in twice)
    if codes != [0, 2]:
        wrong.append(f"two resumes at once: {codes}")
    kept = (place / "reference" / "metrics.csv").read_bytes() == before
    stopped = lost = 0
    for number in range(kills):
        kind = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL)[number % 4]
        arguments = [*START, f"hydra.run.dir=k{number}"]
        first = Command(place, arguments)
        time.sleep((number + 0.5) / kills * reference.seconds)
        os.killpg(first.process, kind)
        first.wait()
        if first.code == 0:
            continue
        stopped += 1
        begun = (place / f"k{number}" / "metrics.csv").exists()
        second = Command(place, [f"resume=k{number}"] if begun else arguments).wait()
        code = -kind if kind == signal.SIGKILL else 128 + kind
        found = differences(place / f"k{number}", place / "reference") if second.code == 0 else [second.text[-300:]]
        if first.code != code or "Traceback" in first.text or found:
            lost += 1
            print(f"k{number}: {kind.name} {first.code} {first.text[-200:]} {found[:3]}", flush=True)
    report.add("resume: trials of folders in use, stored configs and sweeps", 10, wrong="; ".join(wrong))
    report.add("resume: of these wrong", len(wrong), at_most=0)
    report.add("resume: the run in a folder that others wanted is as it was", float(kept), at_least=1)
    report.add("resume: signals to the process group", stopped)
    report.add("resume: of these with another exit code, a traceback or another result after resuming", lost, at_most=0)


def memory(report: Report, place: Path) -> None:
    """Open hostile files as checkpoint and as weights; each must be refused soon and with little memory."""
    place = place / "memory"
    place.mkdir()
    limit = (16 * 2**30, resource.RLIM_INFINITY)
    most = slowest = 0.0
    wrong = count = 0
    for name, write in BOMBS.items():
        file = place / "model.ckpt"
        write(file)
        for arguments in (["ckpt=model.ckpt"], ["model=alexnet", "model.weights=model.ckpt"]):
            guard: Any = lambda: resource.setrlimit(resource.RLIMIT_AS, limit)  # noqa: E731
            done = Command(
                place, [*arguments, "visuals=filters", f"hydra.run.dir=out{count}"], "visualize", guard
            ).wait()
            count += 1
            most, slowest = max(most, done.megabytes), max(slowest, done.seconds)
            if done.code == 0 or "Traceback" in done.text or FAULT in done.text:
                wrong += 1
                print(f"{name}, {arguments[-1]}: {done.code} {done.text[-300:]}", flush=True)
    report.add("memory: hostile files opened", count)
    report.add("memory: not refused in one line", wrong, at_most=0)
    report.add("memory: most memory of the process, MB", most, at_most=MEGABYTES)
    report.add("memory: longest time until the refusal, s", slowest, at_most=SECONDS)
