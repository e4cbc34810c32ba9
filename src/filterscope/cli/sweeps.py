"""Sweeps: check the launcher, run jobs, collect their results, and write the table that compares the runs."""

import csv
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from filterscope.cli.error_messages import describe_error, exit_with_message
from filterscope.cli.resume_arguments import stored_arguments
from filterscope.cli.run_folder import claim_folder
from filterscope.errors import UserError
from filterscope.runtime.processes import PARENT, wait_for_process
from filterscope.runtime.signals import stop_request
from filterscope.storage.atomic import write_file

if TYPE_CHECKING:
    from filterscope.visuals.output.outputs import Table

log = logging.getLogger("filterscope")

STUDY = "study.journal"
"""The file in a search's folder that holds its trials."""

NOTES = ".jobs"
"""The folder inside a sweep's folder that holds one JSON file per job, wherever the job ran."""

RANK_VARIABLES = frozenset(
    ["LOCAL_RANK", "NODE_RANK", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"]
    + [f"SLURM_{name}" for name in ("NTASKS", "NTASKS_PER_NODE", "PROCID", "LOCALID", "NODEID")]
)
"""Variables with which a launcher gives a process its rank."""

_SUBMITIT = ("slurm", "workers", "submitit_slurm", "submitit_local")
_ON_SLURM = ("slurm", "submitit_slurm")
_sweeps: list[Path] = []  # the folder of this process's sweep, if there is one


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


def finish_sweep(unfinished: str = "") -> None:
    """Log the table of a sweep's runs, and exit with code 1 if one of its jobs has failed.

    Args:
        unfinished: the launcher's message about a job that recorded no result.
    """
    files = sorted((file for folder in _sweeps for file in (folder / NOTES).glob("*.json")), key=lambda f: int(f.stem))
    jobs = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}
    if measured := [job for job in jobs.values() if "metrics" in job]:
        log.info("%s", write_sweep_table(measured, _sweeps[0]))
    failed = [f"job {number}: {job['failed']}" for number, job in jobs.items() if "failed" in job]
    failed += [unfinished] if unfinished else []
    if failed:
        log.error("%d of the jobs failed: %s", len(failed), "; ".join(failed))
        sys.exit(1)


def write_sweep_table(jobs: Sequence[Mapping[str, Any]], folder: Path) -> str:
    """Write `runs.csv` into the sweep's folder and return the table as text."""
    from filterscope.visuals.output.tables import table_csv, table_text

    table = runs_table(jobs)
    write_file(folder / "runs.csv", table_csv(table).encode())
    return table_text(table, f"runs in {folder}")


def runs_table(jobs: Sequence[Mapping[str, Any]]) -> "Table":
    """Return a row per recorded job: the overrides that differ, accuracy, shares of the verdicts, and its folder."""
    from filterscope.analysis.health.verdict import Verdict
    from filterscope.visuals.output.outputs import Table

    shares = (f"verdicts/{word}" for word in ("needed", *Verdict) if word != Verdict.UNKNOWN)
    columns = (jobs[0]["monitor"], "val/acc", "test/acc", *shares)
    common = set.intersection(*(set(job["choices"]) for job in jobs)) if len(jobs) > 1 else set()
    names = [name for name in dict.fromkeys(columns) if any(name in job["metrics"] for job in jobs)]
    rows = [
        (
            " ".join(choice for choice in job["choices"] if choice not in common),
            *(job["metrics"].get(name, "") for name in names),
            Path(job["folder"]).name,
        )
        for job in jobs
    ]
    heads = [name.removeprefix("verdicts/") for name in names]
    text = "Each run at its best epoch; the verdicts are shares of all filters." if len(heads) > 2 else ""
    return Table(columns=("chosen", *heads, "run"), rows=tuple(rows), description=text)


def run_in_subprocess(cfg: Mapping[str, Any]) -> dict[str, float] | None:
    """Run a job of a sweep that needs several devices in a subprocess and return the last row of its metrics.

    Inside the sweep's process the ranks of the job would start the whole sweep again, and their environment variables
    would leak into later jobs (Lightning #11300, #18175).

    Returns:
        The metrics, or None if the job belongs to no sweep or needs one device; then nothing was run.
    """
    if not needs_subprocess(cfg):
        return None
    job = Path(HydraConfig.get().runtime.output_dir)
    command = [sys.executable, "-m", "filterscope.cli.train", *stored_arguments(job)]
    environment = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
    environment[PARENT] = str(os.getpid())
    code = wait_for_process(subprocess.Popen(command, env=environment))
    stop_request.check()
    if code:
        raise UserError(f"job {HydraConfig.get().job.num} in {job} ended with exit code {code}")
    with (job / "metrics.csv").open(encoding="utf-8") as file:
        *_, last = csv.DictReader(file)
    return {name: float(value) for name, value in last.items() if value and name != "epoch"}


def needs_subprocess(cfg: Mapping[str, Any]) -> bool:
    """Return whether this is a job of a sweep that needs several devices."""
    trainer = cfg["trainer"]
    several = trainer["devices"] not in (1, "1") or trainer["num_nodes"] > 1 or trainer["strategy"] != "auto"
    return several and in_sweep()


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
