"""Evaluate the predictions for a whole split: intervals, calibration, the hardest images, the most confused classes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor

from filterscope.errors import printable
from filterscope.visuals.charts import dark_figure, rasterized, shade
from filterscope.visuals.confusion import accuracy_table, commonest_mistakes, confusion_picture
from filterscope.visuals.drawing.grid import BACKGROUND, BLUE, FAINT, VERMILION, Cell, grid
from filterscope.visuals.output.outputs import Output, Picture, Table
from filterscope.visuals.predictions import draw_predictions
from filterscope.visuals.visual import name_of

BINS = 15  # of confidence, as in Guo et al. 2017
_HARDEST = 12  # images
_PAIRS, _PER_PAIR = 3, 4

ReadImages = Callable[[Sequence[int]], Tensor]
"""Returns the images at some indices of the split, `(N, C, H, W)` in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class PredictionRecord:
    """What was predicted for each image of a split, in the split's order; all tensors are `(N,)`.

    Attributes:
        labels: the true classes.
        predicted: the predicted classes.
        confidence: the probability of the predicted class.
        loss: the cross-entropy of the image.
    """

    labels: Tensor
    predicted: Tensor
    confidence: Tensor
    loss: Tensor

    @classmethod
    def of(cls, values: Tensor) -> "PredictionRecord":
        """Return the record of values `(4, N)`, as checkpoints hold them."""
        labels, predicted, confidence, loss = values
        return cls(labels=labels.long(), predicted=predicted.long(), confidence=confidence, loss=loss)

    def confusion(self, num_classes: int) -> Tensor:
        """Return counts `(classes, classes)`: rows are true classes, columns predicted ones."""
        counts = torch.bincount(self.labels * num_classes + self.predicted, minlength=num_classes**2)
        return counts.view(num_classes, num_classes)


def accuracy_interval(right: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of an accuracy (Wilson 1927); NaN without images."""
    if not total:
        return float("nan"), float("nan")
    interval = binomtest(right, total).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def macro_f1(counts: Tensor) -> float:
    """Return the mean F1 score of the classes that have images, from a confusion matrix `(classes, classes)`."""
    right, true, predicted = counts.diagonal().double(), counts.sum(1).double(), counts.sum(0).double()
    scores = 2 * right / (true + predicted).clamp_min(1)
    return float(scores[true > 0].mean()) if bool((true > 0).any()) else float("nan")


def reliability(record: PredictionRecord) -> tuple[Tensor, Tensor, Tensor]:
    """Return the number of images, their mean confidence and their accuracy in each of `BINS` bins of confidence."""
    index = (record.confidence * BINS).long().clamp(0, BINS - 1)
    counts = torch.bincount(index, minlength=BINS).double()
    confidence = torch.bincount(index, record.confidence.double(), BINS)
    right = torch.bincount(index, (record.predicted == record.labels).double(), BINS)
    return counts, confidence / counts.clamp_min(1), right / counts.clamp_min(1)


def calibration_error(record: PredictionRecord) -> float:
    """Return the expected calibration error: the mean of |accuracy − confidence| over the bins, weighted by images."""
    counts, confidence, accuracy = reliability(record)
    return float((counts * (accuracy - confidence).abs()).sum() / counts.sum().clamp_min(1))


def summary_table(records: Mapping[str, PredictionRecord], num_classes: int) -> Table:
    """Return a row per split: accuracy with its 95 % interval, macro-F1, expected calibration error and loss."""
    rows = []
    for split, record in records.items():
        right, total = int((record.predicted == record.labels).sum()), len(record.labels)
        accuracy = (right / total if total else float("nan"), *accuracy_interval(right, total))
        f1 = macro_f1(record.confusion(num_classes))
        rows.append((split, total, *accuracy, f1, calibration_error(record), float(record.loss.mean())))
    return Table(
        columns=("split", "images", "accuracy", "from", "to", "macro-F1", "calibration error", "loss"),
        rows=tuple(rows),
        description="Accuracy with its 95 % interval (Wilson), macro-F1, and expected calibration error in 15 bins.",
    )


def evaluation_outputs(
    split: str,
    record: PredictionRecord,
    class_names: Sequence[str],
    *,
    num_classes: int,
    read: ReadImages,
    name: Callable[[int], str],
) -> dict[str, Output]:
    """Return the tables and pictures of a split's predictions.

    Args:
        split: its name, the end of every tag.
        record: the predictions.
        class_names: in the order of the classes.
        num_classes: of the network.
        read: reads images of the split.
        name: returns the name of an image, such as its path below the data's folder.
    """
    counts = record.confusion(num_classes)
    shown: dict[str, Output] = {
        f"predictions/confusion_{split}": confusion_picture(counts, class_names),
        f"predictions/per_class_{split}": accuracy_table(counts, class_names),
        f"predictions/reliability_{split}": reliability_picture(record),
    }
    order = record.loss.argsort(descending=True, stable=True).tolist()
    shown[f"predictions/images_{split}"] = _images_table(record, class_names, order, name)
    hardest = order[:_HARDEST]
    confused = [
        index
        for _, true, said in commonest_mistakes(counts, _PAIRS)
        for index in ((record.labels == true) & (record.predicted == said)).nonzero().flatten()[:_PER_PAIR].tolist()
    ]
    for kind, title, chosen in (
        ("hardest", "images with the largest loss", hardest),
        ("confused", "most confused classes", confused),
    ):
        if chosen:
            chances = torch.zeros(len(chosen), num_classes)
            chances[torch.arange(len(chosen)), record.predicted[chosen]] = record.confidence[chosen].float()
            shown[f"predictions/{kind}_{split}"] = draw_predictions(
                read(chosen), chances, record.labels[chosen], tuple(class_names), title=title
            )
    return shown


def _images_table(
    record: PredictionRecord, class_names: Sequence[str], order: Sequence[int], name: Callable[[int], str]
) -> Table:
    columns = (record.labels, record.predicted, record.confidence, record.loss)
    values = list(zip(*(column.tolist() for column in columns), strict=True))
    rows = tuple(
        (
            printable(name(i).lstrip("/")),
            name_of(true, class_names),
            name_of(said, class_names),
            round(chance, 4),
            round(loss, 4),
        )
        for i in order
        for true, said, chance, loss in [values[i]]
    )
    return Table(
        columns=("image", "true class", "predicted class", "probability", "loss"),
        rows=rows,
        description="The prediction for each image, those with the largest loss first: wrong labels are among them.",
    )


def reliability_picture(record: PredictionRecord) -> Picture:
    """Draw the accuracy in each bin of confidence beside the confidence, and how many images have it."""
    counts, confidence, accuracy = (values.numpy() for values in reliability(record))
    figure, (upper, lower) = dark_figure(2, sharex=True, height_ratios=(3, 1))
    edges, filled = np.arange(BINS) / BINS, counts > 0
    upper.plot([0, 1], [0, 1], color=shade(FAINT), linewidth=1, linestyle="--", label="perfect calibration")
    upper.bar(edges[filled], accuracy[filled], 0.92 / BINS, align="edge", color=shade(BLUE), label="accuracy")
    upper.scatter(confidence[filled], confidence[filled], color=shade(VERMILION), s=36, zorder=3, label="confidence")
    lower.bar(edges, counts / max(counts.sum(), 1), 0.92 / BINS, align="edge", color=shade(FAINT))
    upper.set(ylabel="accuracy", ylim=(0, 1.02))
    lower.set(xlabel="confidence: the probability of the predicted class", ylabel="share", xlim=(0, 1))
    upper.legend(labelcolor=shade(FAINT), facecolor=shade(BACKGROUND), fontsize=15, loc="upper left")
    error = calibration_error(record)
    note = f"expected calibration error {error:.3f}; bars below the dashed line: more confident than right"
    pixels = grid([Cell(pixels=rasterized(figure))], columns=1, title="reliability", notes=[note])
    return Picture(
        pixels=pixels,
        description="Images are sorted into 15 bins by the probability of their predicted class. A **bar** is the "
        "share of right predictions in a bin, a **dot** the mean confidence there: where they agree, the "
        "probability can be believed.",
    )
