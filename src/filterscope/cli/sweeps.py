"""Sweeps: check the launcher, collect the result of each job, and write the table that compares the runs."""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from filterscope.cli.error_messages import describe_error, exit_with_message
from filterscope.cli.run_folder import claim_folder
from filterscope.errors import UserError
from filterscope.storage.atomic import write_file

if TYPE_CHECKING:
    from filterscope.visuals.output.outputs import Table

STUDY = "study.journal"
"""The file in a search's folder that holds its trials."""

NOTES = ".jobs"
"""The folder inside a sweep's folder that holds one JSON file per job, wherever the job ran."""

_SUBMITIT = ("slurm", "workers", "submitit_slurm", "submitit_local")
_ON_SLURM = ("slurm", "submitit_slurm")
_sweeps: list[Path] = []  # the folder of this process's sweep, if there is one


@dataclass(frozen=True, kw_only=True)
class SweepJob:
    """A finished job: its run folder, its overrides, the metrics of its best epoch, and the monitored one."""

    folder: Path
    choices: tuple[str, ...]
    metrics: Mapping[str, float]
    monitor: str


class ClaimFolder(Callback):
    """Claim the folder of a run or a sweep before Hydra writes into it; one that holds another is refused."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Claim the folder of a run."""
        HydraConfig.instance().set_config(config)  # Hydra sets it after this, and the folder's name refers to it
        _claim(config.hydra.run.dir)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Claim and remember the folder of a sweep; a search continues in its folder."""
        folder = config.hydra.sweep.dir
        _sweeps[:] = [_claim(folder, resume=(Path(folder) / STUDY).is_file())]


def in_sweep() -> bool:
    """Return whether this is a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def record_failure(line: str) -> None:
    """Record that this job of a sweep has failed, with the error."""
    _record({"failed": line})


def record_metrics(metrics: Mapping[str, float], monitor: str) -> None:
    """Record the metrics of this job, if it belongs to a sweep."""
    if in_sweep():
        hydra = HydraConfig.get()
        chosen = list(hydra.overrides.task)
        folder = str(hydra.runtime.output_dir)
        _record({"folder": folder, "choices": chosen, "metrics": dict(metrics), "monitor": monitor})


def read_results() -> tuple[Path | None, list[dict[str, Any]]]:
    """Return the folder of this process's sweep (None if there is none) and the results of its jobs in their order."""
    if not _sweeps:
        return None, []
    files = sorted((_sweeps[0] / NOTES).glob("*.json"), key=lambda file: int(file.stem))
    return _sweeps[0], [{"number": int(file.stem), **json.loads(file.read_text(encoding="utf-8"))} for file in files]


def write_sweep_table(jobs: Sequence[SweepJob], folder: Path) -> str:
    """Write `runs.csv` into the sweep's folder and return the table as text."""
    from filterscope.visuals.output.tables import table_csv, table_text

    table = runs_table(jobs)
    write_file(folder / "runs.csv", table_csv(table).encode())
    return table_text(table, f"runs in {folder}")


def runs_table(jobs: Sequence[SweepJob]) -> "Table":
    """Return a row per job: the overrides that differ, accuracy, shares of the verdicts, and its folder."""
    from filterscope.analysis.health.verdict import Verdict
    from filterscope.visuals.output.outputs import Table

    shares = (f"health/{word}/all" for word in ("needed", *Verdict) if word != Verdict.UNKNOWN)
    columns = (jobs[0].monitor, "val/acc", "test/acc", *shares)
    common = set.intersection(*(set(job.choices) for job in jobs)) if len(jobs) > 1 else set()
    names = [name for name in dict.fromkeys(columns) if any(name in job.metrics for job in jobs)]
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


def launcher_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions of the launcher in use for a job that was killed or ran out of time."""
    module = sys.modules.get("submitit.core.utils")
    return (module.FailedJobError, module.UncompletedJobError) if module else ()


def check_launcher(arguments: Sequence[str]) -> None:
    """Check that the chosen launcher is installed, and that there is a Slurm for it.

    Raises:
        UserError: one of them is missing.
    """
    for argument in arguments:
        key, _, name = argument.partition("=")
        if key.removeprefix("override ") != "hydra/launcher" or name not in _SUBMITIT:
            continue
        if find_spec("hydra_plugins") is None or find_spec("hydra_plugins.hydra_submitit_launcher") is None:
            raise UserError(f'{argument} needs the extra "slurm": pip install "filterscope[slurm]"')
        if name in _ON_SLURM and shutil.which("srun") is None:
            raise UserError(
                f"{argument}: there is no Slurm (srun) here; hydra/launcher=workers uses this machine's cores"
            )


def _claim(folder: str, *, resume: bool = False) -> Path:
    try:
        claim_folder(Path(folder), resume=resume)
    except (UserError, OSError) as error:  # Hydra turns exceptions of its callbacks into warnings
        exit_with_message(describe_error(error) or str(error), 2)
    return Path(folder)


def _record(content: dict[str, Any]) -> None:
    hydra = HydraConfig.get()
    write_file(Path(hydra.sweep.dir) / NOTES / f"{hydra.job.num}.json", json.dumps(content).encode())
