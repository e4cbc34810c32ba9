"""The processor cores that a process may use, in a container too, and how many threads compute."""

import math
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def available_cores(*, cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Return how many cores this process may use: its CPU affinity, and at most the quota of its container.

    Args:
        cgroups: where the control groups of Linux are mounted.
        own: the file that names the control groups of this process.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *(math.ceil(quota) for quota in _quotas(cgroups, own))]))


def limit_threads() -> None:
    """Let torch compute in no more threads than this process has cores.

    torch chooses one thread for each physical core and does not know the quota of a container. With the environment
    variable OMP_NUM_THREADS the user has chosen, and nothing is changed.
    """
    import torch  # not at the top: the scripts read this module before they import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), available_cores()))


def computes_in_bf16() -> bool:
    """Return whether the processor multiplies in bfloat16, and ATEN_CPU_CAPABILITY lets torch use it."""
    import torch  # as above

    limited = torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")
    return not limited and torch.cpu._is_avx512_bf16_supported()


def sleep_while_waiting() -> None:
    """Make threads that wait for others go to sleep soon; call this before torch is imported.

    By default the threads of OpenMP wait for each other in a busy loop of milliseconds. Where other work runs on the
    machine or a container has a quota, the loop takes the very time that the awaited thread needs
    (`benchmarks/startup.py --threads`).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # turns of the loop


def _quotas(cgroups: Path, own: Path) -> Iterable[float]:
    """Yield the quotas, in cores, of the control groups of this process and of those around them."""
    lines: list[str] = []
    with suppress(OSError):
        lines = own.read_text(encoding="utf-8").splitlines()
    for line in lines:
        _, controllers, name = line.split(":", 2)
        second_version = controllers == ""
        if not second_version and "cpu" not in controllers.split(","):
            continue
        folder = cgroups if second_version else cgroups / controllers
        group = folder / name.strip("/")
        for place in (group, *group.parents):
            if not place.is_relative_to(folder):
                break
            with suppress(OSError, ValueError):
                if second_version:
                    quota, period = (place / "cpu.max").read_text(encoding="utf-8").split()
                else:
                    quota, period = ((place / f"cpu.cfs_{each}_us").read_text().strip() for each in ("quota", "period"))
                if quota != "max" and int(quota) > 0:
                    yield int(quota) / int(period)
