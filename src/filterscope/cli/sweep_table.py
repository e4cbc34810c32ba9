"""The end of a sweep: its runs side by side, accuracy beside health."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from filterscope.analysis.health.verdict import Verdict
from filterscope.storage.atomic import write_file
from filterscope.visuals.output.outputs import Table
from filterscope.visuals.output.tables import table_csv, table_text

SHOWN = ("val/acc", "test/acc", *(f"health/{verdict}/all" for verdict in Verdict))


@dataclass(frozen=True, kw_only=True)
class SweepJob:
    """A finished job: its run folder, what was chosen for it on the command line, and what its best epoch measured."""

    folder: Path
    choices: tuple[str, ...]
    metrics: Mapping[str, float]
    monitor: str


def write_sweep_table(jobs: Sequence[SweepJob], folder: Path) -> str:
    """Write `runs.csv` into the sweep's folder and return the table of its runs as text."""
    table = runs_table(jobs)
    write_file(folder / "runs.csv", table_csv(table).encode())
    return table_text(table, f"runs in {folder}")


def runs_table(jobs: Sequence[SweepJob]) -> Table:
    """Return a row per job: the choices in which the jobs differ, accuracy, shares of the verdicts, its folder."""
    common = set.intersection(*(set(job.choices) for job in jobs)) if len(jobs) > 1 else set()
    names = [name for name in dict.fromkeys((jobs[0].monitor, *SHOWN)) if any(name in job.metrics for job in jobs)]
    rows = [
        (
            " ".join(choice for choice in job.choices if choice not in common),
            *(job.metrics.get(name, "") for name in names),
            job.folder.name,
        )
        for job in jobs
    ]
    heads = [name.removeprefix("health/").removesuffix("/all") for name in names]
    text = "Each run at its best epoch; the verdicts are shares of all filters." if len(heads) > 2 else ""
    return Table(columns=("chosen", *heads, "run"), rows=tuple(rows), description=text)
