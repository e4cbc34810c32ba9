"""Report the figures of a benchmark as a table on the screen and as JSON in a file."""

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from filterscope.storage.atomic import atomic_write


class Ratio(NamedTuple):
    """How many times as fast one side is as the other: the median, least and most of pairs that were timed alternately.

    `slow` and `fast` are the median seconds of both sides.
    """

    times: float
    slow: float
    fast: float
    low: float
    high: float

    def scaled(self, factor: float) -> "Ratio":
        """Return the ratio if the fast side did `factor` times the work of the slow one."""
        return Ratio(self.times * factor, self.slow, self.fast / factor, self.low * factor, self.high * factor)


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
        """Add a measured figure, print it, and compare it with its target if it has one.

        Of `more`, `rival` says what the figure is a multiple of, and `spread` is the least and the most of repetitions.
        """
        value = float(value)  # JSON has no numbers of numpy
        target = at_least if at_least is not None else at_most
        holds = None if target is None else (value >= target if at_least is not None else value <= target)
        sign = "" if target is None else ("≥" if at_least is not None else "≤")
        self.rows.append({"what": what, "value": value, "target": target, "sign": sign, "holds": holds, **more})
        print(f"{what}: {value:.4g}" + (f" (target {sign} {target:g})" if target is not None else ""), flush=True)

    def compare(
        self, what: str, found: Ratio, *, rival: str, at_least: float | None = None, **more: float | str
    ) -> None:
        """Add how many times as fast this is as a rival, which is named with its version."""
        about = {"rival_seconds": found.slow, "seconds": found.fast, **more}
        self.add(what, found.times, at_least=at_least, rival=rival, spread=[found.low, found.high], **about)

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
            content = {
                "title": self.title,
                "command": command(),
                "machine": machine(),
                "commit": commit(),
                "date": time.strftime("%Y-%m-%d", time.gmtime()),
                "rows": self.rows,
            }
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
) -> Ratio:
    """Time both sides alternately with `seconds`."""
    return ratio_of(
        [(seconds(slow, processor=processor), seconds(fast, processor=processor)) for _ in range(repetitions)]
    )


def ratio_of(pairs: Sequence[tuple[float, float]]) -> Ratio:
    """Return the ratio of pairs of seconds, each of the slow and the fast side."""
    ratios = [slow / fast for slow, fast in pairs]
    slow, fast = (statistics.median(side) for side in zip(*pairs, strict=True))
    return Ratio(statistics.median(ratios), slow, fast, min(ratios), max(ratios))


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
    flags = next((line.split(":")[1].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return {
        "kind": machine_kind(flags),
        "processor": (names or [platform.processor()])[0],
        "flags": [flag for flag in flags if flag in UNITS],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def machine_kind(flags: Sequence[str]) -> str:
    """Return the kind of machine by what decides its speed: number of cores, vector units, GPU.

    `ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2` measures a processor with more as one that has AVX2 only.
    """
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    simulated = "avx2" in flags and os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() == "AVX2"
    has = ["avx2"] if simulated else [flag for flag in UNITS if flag in flags]
    best = UNITS[has[-1]] if has else platform.machine()
    return f"{os.cpu_count()} cores, {best}{' only, simulated' if simulated else ''}"


UNITS = {
    "asimd": "NEON",
    "bf16": "NEON with bfloat16",
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_bf16": "AVX-512 with bfloat16",
    "amx_bf16": "AMX",
}
"""Vector units by their flags in /proc/cpuinfo, slowest first."""


def kept(file: Path, make: Callable[[], Any]) -> Any:
    """Return the tensors that an earlier run left in a file, or make them and leave them there."""
    if not file.exists():
        made = make()
        with atomic_write(file) as stream:
            torch.save(made, stream)
    return torch.load(file, weights_only=True)


def version(package: str) -> str:
    """Return an installed package with its version, as the name of a rival."""
    return f"{package} {importlib.metadata.version(package)}"


def command() -> str:
    """Return the command that is running, as anyone would type it in the repository, without `--json FILE`."""
    words, skip = [], False
    for word in sys.argv[1:]:
        if not skip and not word.startswith("--json"):
            words.append(word)
        skip = word == "--json"
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])


def commit() -> str:
    """Return the measured commit, with `+` if the working tree differs from it."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=False).stdout.strip()

    return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
