"""What the jobs of a sweep came to: each leaves a note in the sweep's folder, wherever it ran."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from filterscope.storage.atomic import write_file

NOTES = ".jobs"
"""In the folder of a sweep: a file per job."""

_sweeps: list[Path] = []  # of this process, one at most


class SweepResults(Callback):
    """Knows the folder of a sweep before its jobs, which may run elsewhere, and removes what an older one noted."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Remember the folder."""
        folder = Path(config.hydra.sweep.dir)
        _sweeps[:] = [folder]
        for note in (folder / NOTES).glob("*.json"):
            note.unlink()


def in_sweep() -> bool:
    """Return whether this is a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def record_failure(line: str) -> None:
    """Note that this job of a sweep has failed, and why."""
    _note({"failed": line})


def record_metrics(metrics: Mapping[str, float], monitor: str) -> None:
    """Note what this job has measured, where it is one of a sweep."""
    if in_sweep():
        hydra = HydraConfig.get()
        chosen = list(hydra.overrides.task)
        folder = str(hydra.runtime.output_dir)
        _note({"folder": folder, "choices": chosen, "metrics": dict(metrics), "monitor": monitor})


def read_results() -> tuple[Path | None, list[dict[str, Any]]]:
    """Return the folder of this process's sweep, None where it made none, and what its jobs noted, in their order."""
    if not _sweeps:
        return None, []
    files = sorted((_sweeps[0] / NOTES).glob("*.json"), key=lambda file: int(file.stem))
    return _sweeps[0], [{"number": int(file.stem), **json.loads(file.read_text(encoding="utf-8"))} for file in files]


def _note(content: dict[str, Any]) -> None:
    hydra = HydraConfig.get()
    write_file(Path(hydra.sweep.dir) / NOTES / f"{hydra.job.num}.json", json.dumps(content).encode())
