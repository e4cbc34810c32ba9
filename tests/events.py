"""Read the numbers of a run's event files."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def scalars_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the steps and values of all numbers by tag."""
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    return {
        tag: [(each.step, each.tensor_proto.float_val[0]) for each in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
        if events.SummaryMetadata(tag).plugin_data.plugin_name == "scalars"
    }
