"""Try more random input than the tests do: override strings, checkpoints with arbitrary values, damaged files."""

import os
import random
import resource
import sys
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from faults_runs import config, start
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from report import Report

import fuzzing
from filterscope.cli.error_messages import describe_error
from filterscope.config.from_checkpoint import open_run
from filterscope.errors import UserError

_MEMORY = 12 << 30  # bytes; larger allocations fail as on a small machine


def fuzz(report: Report, place: Path, *, seed: int, count: int) -> None:
    """Try `count` inputs of each kind in a separate process, and resume a twentieth as many runs."""
    folder = place / "fuzz"
    if start(config("visuals=[filters,health]", "trainer.max_epochs=1"), folder).wait() != [0]:
        raise SystemExit("the run whose checkpoint is to be changed failed")
    for name, trial in (("overrides", _overrides), ("checkpoints changed", _changed), ("files damaged", _damaged)):
        tried, refused, broken = _in_child(trial, folder, seed, count, place / f"{name}.txt")
        report.add(f"fuzz: {name}", tried, at_least=count, refused=refused, seed=seed)
        report.add(f"fuzz: {name}: with a traceback", broken, at_most=0)
    _resumed(report, folder, place, seed=seed, count=max(5, count // 20))


def _in_child(
    trial: Callable[[Path, int, int, "Counter"], None], folder: Path, seed: int, count: int, result_file: Path
) -> tuple[int, int, int]:
    child = os.fork()
    if child == 0:
        counter = Counter()
        try:
            quiet = os.open("/dev/null", os.O_WRONLY)
            os.dup2(quiet, 1)
            resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
            torch.set_num_threads(1)
            warnings.simplefilter("ignore")
            trial(folder, seed, count, counter)
        except BaseException:
            traceback.print_exc()
        finally:
            result_file.write_text(f"{counter.tried} {counter.refused} {counter.broken}")
            os._exit(0)
    os.waitpid(child, 0)
    tried, refused, broken = result_file.read_text().split()
    return int(tried), int(refused), int(broken)


class Counter:
    """Count the inputs tried, the ones refused in one line, and the ones that ended in a traceback."""

    def __init__(self) -> None:
        self.tried = self.refused = self.broken = 0

    def run(self, name: object, act: Callable[[], str | None]) -> None:
        """Try one input."""
        self.tried += 1
        try:
            self.refused += act() is not None
        except BaseException as error:
            if describe_error(error) is not None:
                self.refused += 1
                return
            self.broken += 1
            print(f"TRACEBACK caused by {str(name)[:300]!r}", file=sys.stderr)
            traceback.print_exc()


def _overrides(folder: Path, seed: int, count: int, counter: Counter) -> None:
    @seeded(seed)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(fuzzing.overrides())
    def try_them(given: list[str]) -> None:
        counter.run(given, lambda: fuzzing.set_up(given, folder / "set_up"))

    with fuzzing.composing():
        while counter.tried < count:  # Hypothesis may stop early if it has exhausted the inputs
            try_them()


def _changed(folder: Path, seed: int, count: int, counter: Counter) -> None:
    rng = random.Random(seed)
    content = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    for number in range(count):
        file = folder / "changed.ckpt"
        torch.save(fuzzing.mutate(content, rng.randrange), file)
        counter.run(f"change {number}", partial(_opened, file))


def _damaged(folder: Path, seed: int, count: int, counter: Counter) -> None:
    rng = random.Random(seed)
    data = (folder / "checkpoints" / "last.ckpt").read_bytes()
    for number in range(count):
        file = folder / "changed.ckpt"
        file.write_bytes(fuzzing.damage(data, rng.randrange))
        counter.run(f"damage {number}", partial(_opened, file))


def _opened(file: Path) -> str | None:
    try:
        open_run(file)
    except UserError as error:
        return str(error)
    return None


def _resumed(report: Report, folder: Path, place: Path, *, seed: int, count: int) -> None:
    """Resume runs whose checkpoint was changed: they finish or end in one line."""
    rng = random.Random(seed)
    content = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    cfg = config("visuals=filters", "trainer.max_epochs=2")
    refused = broken = 0
    for number in range(count):
        run = place / f"changed_{number}"
        (run / "checkpoints").mkdir(parents=True)
        torch.save(fuzzing.mutate(content, rng.randrange), run / "checkpoints" / "last.ckpt")
        started = start(cfg, run, resume=True)
        code = started.wait(120)[0]
        refused += code == 2
        broken += code not in (0, 2)
        if code not in (0, 2):
            print(f"{run}: {code} {started.message}", flush=True)
    report.add("fuzz: runs resumed from changed checkpoints", count, refused=refused, seed=seed)
    report.add("fuzz: runs resumed from changed checkpoints: with a traceback", broken, at_most=0)
