"""Numbers in TensorBoard: each with a description, and the layout of the tab CUSTOM SCALARS."""

from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_FLOAT
from tensorboard.plugins.scalar.metadata import create_summary_metadata

from filterscope.analysis.health.measures import all_measures
from filterscope.analysis.health.verdict import Verdict

LAYOUT = {
    "Training": {
        "accuracy": ["Multiline", ["^(train/|val/|when_finished/test_)acc$"]],
        "loss": ["Multiline", ["^(train/|val/|when_finished/test_)loss$"]],
    },
    "Filters": {"share of each verdict": ["Multiline", ["^verdicts/"]]},
}
"""The charts of the tab CUSTOM SCALARS, as `SummaryWriter.add_custom_scalars` takes them."""

_SPLITS = {
    "train": "training images, augmented and during the epoch",
    "val": "validation images",
    "test": "test images",
}
_METRICS = {
    "loss": "Mean loss",
    "acc": "Share (0 to 1) of correct predictions",
    "acc_top5": "Share (0 to 1) of images whose class is among the five most probable",
}

_STEPS = {
    "gradient_norm": "Mean over measured steps: norm of the gradient of the loss, before clipping, of",
    "update_ratio": "Mean over measured steps: norm of the change in one step ÷ norm of the parameters of",
    "learning_rate": "Learning rate at the end of the epoch of the parameter group",
}


def describe_scalar(tag: str) -> str:
    """Return what a number means, in one sentence; empty if its tag is not one of filterscope's."""
    first, _, rest = tag.partition("/")
    name, _, layer = rest.rpartition("/")
    if tag == "train/loss_step":
        return "The loss of single optimizer steps; the step counts these, not epochs."
    if first in _SPLITS and rest in _METRICS:
        return f"{_METRICS[rest]}, {_SPLITS[first]}."
    if tag == "verdicts/needed":
        return "Share of the filters of all convolutions that the network needs: judged useful or unstructured."
    if first in ("verdicts", "health"):
        word, where = (name, layer) if name else (layer, "all convolutions")
        if word in list(Verdict):
            return f"Share of the filters of {where} that are judged {word}: {Verdict(word).meaning}."
        measure = all_measures().get(word)
        return f"Of the filters of {where}: {measure.description}" if measure else ""
    if first == "optimizer":
        kind, _, where = rest.partition("/")
        return f"{_STEPS[kind]} {where}." if kind in _STEPS else ""
    if first.startswith("lr-"):
        return "Learning rate of a group of parameters."
    return ""


def tensorboard_tag(tag: str) -> str:
    """Return the tag that a number has in TensorBoard, which sorts by tag and would show `test/…` before `train/…`."""
    return f"when_finished/test_{tag.removeprefix('test/')}" if tag.startswith("test/") else tag


def write_scalar(writer: Any, tag: str, value: float, step: int) -> None:
    """Write a number with its description to a `SummaryWriter`.

    `SummaryWriter.add_scalar` writes none, and TensorBoard's default loader drops that of a `simple_value`.
    """
    tensor = TensorProto(dtype=DT_FLOAT, float_val=[value], tensor_shape=TensorShapeProto())
    about = create_summary_metadata(display_name=tag, description=describe_scalar(tag))
    value_of_tag = Summary.Value(tag=tensorboard_tag(tag), tensor=tensor, metadata=about)
    writer.file_writer.add_summary(Summary(value=[value_of_tag]), step)
