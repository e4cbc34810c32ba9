"""Train hundreds of epochs with every visual: memory, open files and threads must not grow, event files only evenly."""

import statistics
import time
from pathlib import Path

from faults_runs import config, start
from report import Report

_FROM = 20  # epochs until all one-time allocations have happened


def many_epochs(report: Report, place: Path, *, epochs: int) -> None:
    """Inspect the process of a run after every epoch."""
    cfg = config(f"trainer.max_epochs={epochs}")
    folder = place / "long"
    run = start(cfg, folder)
    process = Path("/proc") / str(run.processes[0])
    seen: dict[int, tuple[int, int, int, int]] = {}
    while run.alive():
        time.sleep(0.05)
        epoch = len(list((folder / "pictures/predictions/val").glob("*.png"))) - 1
        if epoch >= 0 and epoch not in seen:
            try:
                seen[epoch] = _inspect(process, folder)
            except (FileNotFoundError, ProcessLookupError, StopIteration):
                break
    codes = run.wait()
    window = max(5, epochs // 15)
    late = [seen[epoch] for epoch in sorted(seen) if epoch > epochs - window]
    early = [seen[epoch] for epoch in sorted(seen) if _FROM <= epoch < _FROM + window]
    memory, _, threads, _ = (statistics.median(column) for column in zip(*early, strict=True))
    memory_end, _, threads_end, _ = (statistics.median(column) for column in zip(*late, strict=True))
    # The fewest: while an epoch is drawn, a file that is being written is open for a moment, which is no leak.
    files, files_end = (min(files for _, files, _, _ in seen_in) for seen_in in (early, late))
    report.add("long: epochs", max(seen, default=0), at_least=epochs - 1, exit_code=str(codes))
    report.add(
        "long: memory at the end ÷ after epoch 20", memory_end / memory, at_most=1.02, megabytes=memory_end / 1024
    )
    report.add("long: additional file descriptors since epoch 20", files_end - files, at_most=0)
    report.add("long: additional threads since epoch 20", threads_end - threads, at_most=0)
    half = min(seen, key=lambda epoch: abs(epoch - epochs // 2))
    quarter, last = min(seen, key=lambda epoch: abs(epoch - epochs // 4)), max(seen)
    first = (seen[half][3] - seen[quarter][3]) / (half - quarter)
    second = (seen[last][3] - seen[half][3]) / (last - half)
    report.add("long: event bytes per epoch, second half ÷ second quarter", second / first, at_most=1.1, bytes=second)


def _inspect(process: Path, folder: Path) -> tuple[int, int, int, int]:
    """Return the process's memory in kB, its open files and threads, and the bytes of its event files."""
    lines = (process / "status").read_text().splitlines()
    memory = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
    threads = next(int(line.split()[1]) for line in lines if line.startswith("Threads"))
    files = len(list((process / "fd").iterdir()))
    return memory, files, threads, sum(path.stat().st_size for path in folder.glob("events.*"))
