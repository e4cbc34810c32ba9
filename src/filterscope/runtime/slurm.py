"""Requeue jobs on Slurm: find the run folder of a requeued job, and request the next requeue before the time limit."""

import json
import logging
import os
import subprocess
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

JOB_FILE = ".slurm"
"""The file in a run folder that holds the job's id and arguments."""


def find_requeued_run(arguments: list[str]) -> Path | None:
    """Return the folder of the run that this job started with the same arguments before it was requeued, or None."""
    if int(os.environ.get("SLURM_RESTART_COUNT") or 0) == 0 or {"-m", "--multirun"} & set(arguments):
        return None
    given = literal_path(arguments, "hydra.run.dir")
    found = [given] if given is not None else [path.parent for path in Path("outputs").glob(f"*/{JOB_FILE}")]
    for folder in sorted(found, key=lambda path: path.stat().st_mtime if path.exists() else 0, reverse=True):
        try:
            same = json.loads((folder / JOB_FILE).read_text(encoding="utf-8")) == _job(arguments)
        except (OSError, ValueError):
            same = False
        if same and (folder / ".hydra" / "config.yaml").is_file():
            return folder.resolve()
    return None


def record_job(folder: Path, arguments: list[str]) -> None:
    """Write the job's id and arguments into the run folder, so that a requeued job finds it."""
    if "SLURM_JOB_ID" in os.environ:
        (folder / JOB_FILE).write_text(json.dumps(_job(arguments)), encoding="utf-8")


def requeue() -> None:
    """Ask Slurm to requeue this job, after its early signal has ended the run before the time limit."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
        problem = done.stderr.strip() if done.returncode else ""
    except OSError as error:
        problem = str(error)
    log.error("scontrol requeue %s: %s", job, problem) if problem else log.info("job %s is requeued", job)


def literal_path(arguments: list[str], key: str) -> Path | None:
    """Return the path that the arguments set for a key, or None if there is none or it contains a reference."""
    given = [argument.removeprefix(f"{key}=") for argument in arguments if argument.startswith(f"{key}=")]
    return Path(given[-1].strip("'\"")) if given and "${" not in given[-1] else None


def _job(arguments: list[str]) -> dict[str, Any]:
    array = os.environ.get("SLURM_ARRAY_TASK_ID", "")
    given = sorted(argument for argument in arguments if not argument.startswith("hydra.mode="))  # Hydra adds it
    return {"job": f"{os.environ.get('SLURM_JOB_ID', '')}_{array}", "arguments": given}
