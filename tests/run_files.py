"""Read what a run has written: its tables, its checkpoints, and the numbers of its event files."""

import csv
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def rows_of(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file, or those of the `metrics.csv` of a run folder."""
    with (path / "metrics.csv" if path.is_dir() else path).open() as file:
        return list(csv.DictReader(file))


def checkpoint_of(run: Path, name: str = "last") -> dict[str, Any]:
    """Return the content of one of a run's checkpoints."""
    return torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)


def weights_of(run: Path, name: str = "last") -> dict[str, torch.Tensor]:
    """Return the weights in one of a run's checkpoints."""
    return checkpoint_of(run, name)["state_dict"]


def scalars_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the steps and values of all numbers by tag."""
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    return {
        tag: [(each.step, each.tensor_proto.float_val[0]) for each in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
        if events.SummaryMetadata(tag).plugin_data.plugin_name == "scalars"
    }
