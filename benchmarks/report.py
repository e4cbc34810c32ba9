"""Report the figures of a benchmark as a table on the screen and as JSON in a file."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table


@dataclass
class Report:
    """The rows of one run of a benchmark; `holds` is whether a row meets its target, None if it has no target."""

    title: str
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self,
        what: str,
        value: float,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
        **more: float | str | list[float] | None,
    ) -> None:
        """Add a measured figure, print it, and compare it with its target if it has one."""
        target = at_least if at_least is not None else at_most
        holds = None if target is None else (value >= target if at_least is not None else value <= target)
        sign = "" if target is None else ("≥" if at_least is not None else "≤")
        self.rows.append({"what": what, "value": value, "target": target, "sign": sign, "holds": holds, **more})
        print(f"{what}: {value:.4g}" + (f" (target {sign} {target:g})" if target is not None else ""), flush=True)

    def show(self, json_file: Path | None = None) -> bool:
        """Print the table, write the JSON file if one is given, and return whether every target is met."""
        table = Table("what", "value", "target", "holds", title=self.title)
        for row in self.rows:
            target = "" if row["target"] is None else f"{row['sign']} {row['target']:g}"
            table.add_row(
                row["what"], f"{row['value']:.4g}", target, {True: "yes", False: "NO", None: ""}[row["holds"]]
            )
        Console().print(table)
        if json_file is not None:
            content = {"title": self.title, "machine": machine(), "commit": commit(), "rows": self.rows}
            json_file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        return all(row["holds"] is not False for row in self.rows)


def arguments(description: str, **more: dict[str, Any]) -> argparse.Namespace:
    """Parse the command line: `--quick`, `--json FILE` and more options given as `name={argparse keywords}`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a smaller measurement, at most ten minutes on two cores")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to FILE")
    for name, keywords in more.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **keywords)
    return parser.parse_args()


def real_data() -> Path | None:
    """Return the folder of real weights and images from the environment variable FILTERSCOPE_REAL, or None."""
    named = os.environ.get("FILTERSCOPE_REAL")
    return Path(named) if named else None


def ratio(
    slow: Callable[[], object], fast: Callable[[], object], *, repetitions: int = 3, processor: bool = False
) -> tuple[float, float, float]:
    """Time both sides alternately with `seconds`; return the median of slow ÷ fast, and the median of each."""
    pairs = [(seconds(slow, processor=processor), seconds(fast, processor=processor)) for _ in range(repetitions)]
    slow_times, fast_times = zip(*pairs, strict=True)
    return (
        statistics.median(a / b for a, b in pairs),
        statistics.median(slow_times),
        statistics.median(fast_times),
    )


def seconds(work: Callable[[], object], *, processor: bool = False) -> float:
    """Return the duration of `work` in seconds, including pending GPU work.

    With `processor` it is the processor time of this process and its finished children, which other work on the machine
    disturbs less.
    """
    synchronize()
    start = processor_time() if processor else time.perf_counter()
    work()
    synchronize()
    return (processor_time() if processor else time.perf_counter()) - start


def processor_time() -> float:
    """Return the processor time in seconds of this process and its finished children."""
    return time.process_time() + sum(os.times()[2:4])


def synchronize() -> None:
    """Wait until the GPU has finished, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def machine() -> dict[str, Any]:
    """Describe the machine that the figures were measured on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": (names or [platform.processor()])[0],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def commit() -> str:
    """Return the measured commit, with `+` if the working tree differs from it."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=False).stdout.strip()

    return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
