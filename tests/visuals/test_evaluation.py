"""Intervals, calibration and F1 equal the references; the pictures show the images they speak of."""

import pytest
import torch
from sklearn.metrics import f1_score
from torchmetrics.functional.classification import multiclass_calibration_error

from filterscope.visuals.evaluation import (
    PredictionRecord,
    accuracy_interval,
    calibration_error,
    evaluation_outputs,
    macro_f1,
    summary_table,
)


@pytest.fixture
def record():
    generator = torch.Generator().manual_seed(0)
    chances = torch.randn(400, 5, generator=generator).mul(2).softmax(1)
    labels = torch.randint(0, 5, (400,), generator=generator)
    confidence, predicted = chances.max(1)
    losses = -chances[torch.arange(400), labels].log()
    return PredictionRecord.of(torch.stack([labels.float(), predicted.float(), confidence, losses])), chances


def test_the_numbers_are_those_of_scikit_learn_and_torchmetrics(record):
    known, chances = record
    expected = float(multiclass_calibration_error(chances, known.labels, num_classes=5, n_bins=15))
    assert calibration_error(known) == pytest.approx(expected, abs=1e-6)
    assert macro_f1(known.confusion(5)) == pytest.approx(f1_score(known.labels, known.predicted, average="macro"))


def test_intervals_are_wilson_s():
    # Brown, Cai and DasGupta 2001: for 0 of n the upper end is z² / (n + z²).
    assert accuracy_interval(0, 10) == pytest.approx((0, 1.959964**2 / (10 + 1.959964**2)), abs=1e-6)
    low, high = accuracy_interval(50, 100)
    assert low + high == pytest.approx(1)
    assert high - low == pytest.approx(0.1922, abs=1e-3)


def test_the_hardest_and_the_confused_images_are_read_from_the_split(record):
    known, _ = record
    asked = []

    def read(indices):
        asked.append(list(indices))
        return torch.rand(len(indices), 3, 16, 16)

    shown = evaluation_outputs("val", known, tuple("abcde"), num_classes=5, read=read, name="image {}".format)
    assert {tag.partition("/")[2] for tag in shown} == {
        "confusion_val", "per_class_val", "reliability_val", "hardest_val", "confused_val",
        "images_val",
    }  # fmt: skip
    hardest, confused = asked
    assert hardest == known.loss.argsort(descending=True)[:12].tolist()
    assert all(known.labels[i] != known.predicted[i] for i in confused)
    rows = shown["predictions/images_val"].rows
    assert [row[0] for row in rows[:12]] == [f"image {i}" for i in hardest]
    assert len(rows) == len(known.labels)
    worst = hardest[0]
    assert rows[0][1:3] == ("abcde"[known.labels[worst]], "abcde"[known.predicted[worst]])
    assert summary_table({"val": known}, 5).rows[0][:2] == ("val", 400)


def test_a_network_that_is_always_right_has_no_confused_images():
    labels = torch.arange(6) % 3
    sure = torch.stack([labels.float(), labels.float(), torch.ones(6), torch.zeros(6)])
    shown = evaluation_outputs(
        "test", PredictionRecord.of(sure), (), num_classes=3, read=lambda i: torch.rand(len(i), 1, 8, 8), name=str
    )
    assert "predictions/confused_test" not in shown
    assert calibration_error(PredictionRecord.of(sure)) == 0
