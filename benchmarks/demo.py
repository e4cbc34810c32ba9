"""Where does the time of the first run go, and what does it leave on the disk?

    python benchmarks/demo.py [--quick] [--json FILE] [--train="OVERRIDES"]

Runs `train.py` with its defaults (or OVERRIDES) in this process and measures each stage: imports, data, network,
validation before training, training with validation, each visual, writing, checkpoints, and the end of the run. Wall
time and processor time; on a machine with other work only the latter says something. `--quick` trains for two epochs.

For a processor with AVX2 only, on one with more: `ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2`.
"""

import functools
import os
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BEGIN = time.perf_counter()

from filterscope.runtime.cores import sleep_while_waiting  # noqa: E402

sleep_while_waiting()


class Stages:
    """Wall time and processor time by stage; the time of an inner stage does not count for the outer one."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = {}
        self.running: list[str] = []
        self.since = (BEGIN, 0.0)

    def add(self) -> None:
        """Add the time since the last change to the running stage."""
        usage = os.times()
        now = (time.perf_counter(), sum(usage[:4]))
        times = self.times.setdefault(self.running[-1] if self.running else "between the stages", [0.0, 0.0])
        for place in (0, 1):
            times[place] += now[place] - self.since[place]
        self.since = now

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the block as a stage."""
        self.add()
        self.running.append(name)
        try:
            yield
        finally:
            self.add()
            self.running.pop()

    def measure(self, owner: Any, function: str, name: str) -> None:
        """Measure every call of a function or method."""
        original: Callable[..., Any] = getattr(owner, function)

        @functools.wraps(original)
        def measured(*positional: Any, **named: Any) -> Any:
            with self.stage(name):
                return original(*positional, **named)

        setattr(owner, function, measured)


def main() -> int:
    """Measure."""
    stages = Stages()
    with stages.stage("imports"):
        import pytorch_lightning as pl
        from loops import compose
        from report import Report, arguments

        from filterscope.cli.train import train
        from filterscope.config import factory, trainer_factory  # noqa: F401  # imported here to be measured
        from filterscope.training import log_visuals, results
        from filterscope.training.checkpoints import RunCheckpoints

    options = arguments(
        __doc__.splitlines()[0],
        train={"default": "", "metavar": "OVERRIDES", "help": "options of train.py"},
    )
    given = ["trainer.max_epochs=2"] if options.quick else []
    report, first = Report("the first run"), [0.0]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        with stages.stage("configuration"):
            config = compose(*given, *shlex.split(options.train))
        stages.measure(factory, "build_data", "data")
        stages.measure(factory, "build_classifier", "network")
        stages.measure(pl.Trainer, "validate", "validation before training")
        stages.measure(pl.Trainer, "fit", "training and validation")
        stages.measure(pl.Trainer, "test", "test")
        stages.measure(RunCheckpoints, "save", "checkpoints")
        stages.measure(log_visuals, "write_outputs", "writing pictures and tables")
        stages.measure(results, "write_outputs", "writing pictures and tables")
        stages.measure(results, "finish_run", "end of the run")
        build = factory.build_visuals

        def build_measured(cfg: dict[str, Any]) -> dict[str, Any]:
            visuals = build(cfg)
            for name, visual in visuals.items():
                if "__call__" in vars(type(visual)):
                    stages.measure(type(visual), "__call__", f"visual {name}")
                stages.measure(type(visual), "record_validation", f"visual {name}")
            return visuals

        factory.build_visuals = build_measured  # type: ignore[assignment]
        write = log_visuals.write_outputs

        def write_measured(*positional: Any, **named: Any) -> None:
            write(*positional, **named)
            if not first[0] and any((folder / "pictures").rglob("*.png")):
                first[0] = time.perf_counter() - BEGIN

        log_visuals.write_outputs = write_measured  # type: ignore[assignment]
        metrics = train(config, folder)
        stages.add()
        sizes = results.folder_sizes(folder)
    seconds = time.perf_counter() - BEGIN
    for name, (wall, processor) in stages.times.items():
        report.add(f"{name}: seconds", wall, processor_seconds=processor)
        print(f"    processor time {processor:.1f} s")
    report.add("processor time in total, seconds", sum(processor for _, processor in stages.times.values()))
    report.add("seconds until the first picture is on the disk", first[0], at_most=30)
    report.add("seconds in total", seconds, at_most=180)
    report.add("accuracy on the validation images", metrics["val/acc"], at_least=0.95)
    for kind, size in sizes.items():
        report.add(f"{kind}: MB", size / 1e6)
    report.add("run folder: MB", sum(sizes.values()) / 1e6, at_most=150)
    return 0 if report.show(options.json) else 1


if __name__ == "__main__":
    raise SystemExit(main())
