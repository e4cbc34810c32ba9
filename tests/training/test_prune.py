"""A run is pruned: filters are cut out, the network is trained again, and its checkpoint is read like any other."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from train import train

import filterscope
from filterscope.config.factory import build_data
from filterscope.config.from_checkpoint import open_run
from filterscope.config.options import check_config
from filterscope.errors import UserError
from filterscope.models.backbone import small_cnn_backbone
from filterscope.models.heads import replace
from filterscope.training.module import FinetuneModule
from filterscope.training.prune import FILTERS, SUMMARY, judge_for_cut
from filterscope.visuals.health.health import measure_health
from filterscope.visuals.visual import Examples
from run_files import rows_of, weights_of
from tiny import TINY

pytest.importorskip("torch_pruning", reason="torch-pruning is not installed")

Compose = Callable[..., dict[str, Any]]


@pytest.fixture
def source(composed: Compose, tmp_path: Path) -> Path:
    """Return the folder of a finished tiny run."""
    train(composed(*TINY, "visuals=none"), tmp_path / "source")
    return tmp_path / "source"


def test_filters_are_judged_alike_however_sure_of_itself_a_network_is() -> None:
    torch.manual_seed(0)
    classifier = replace(small_cnn_backbone(), num_classes=4)
    images = torch.rand(40, 1, 28, 28)
    with torch.no_grad():
        logits = classifier.eval()(images)
        classifier.head.weight.mul_(3 / logits.std(0).mean())
        classifier.head.bias.mul_(3 / logits.std(0).mean()).sub_(classifier(images).mean(0))
        labels = torch.where(torch.arange(40) % 4 == 0, torch.arange(40) % 3, classifier(images).argmax(1))
    examples = Examples(images=images, labels=labels)
    calibrated = judge_for_cut(classifier, examples)
    with torch.no_grad():
        classifier.head.weight.mul_(2)
        classifier.head.bias.mul_(2)
    surer, uncalibrated = judge_for_cut(classifier, examples), measure_health(classifier, examples)
    first, second, other = (
        records["block1_conv1"]["measures"]["importance_se"] for records in (calibrated, surer, uncalibrated)
    )
    assert torch.allclose(first, second, rtol=1e-4)
    assert not torch.allclose(second, other, rtol=0.1)


def test_a_share_is_cut_out_trained_again_and_read_back(source: Path, composed: Compose, tmp_path: Path) -> None:
    options = (f"model.weights={source}", "prune=share", "prune.share=0.3", "trainer.max_epochs=1", "visuals=none")
    cfg = composed(*TINY, *options)
    train(cfg, tmp_path / "pruned")
    rows = rows_of(tmp_path / "pruned" / SUMMARY)
    assert [row["network"] for row in rows] == ["before", "after the cut", "after the training"]
    before, _, after = ([float(cell) for name, cell in row.items() if name != "network"] for row in rows)
    filters = rows_of(tmp_path / "pruned" / FILTERS)
    assert len(filters) == 30
    assert 0 < sum(row["removed"] == "yes" for row in filters) <= 9
    assert all(row["why"] for row in filters)
    run = open_run(tmp_path / "pruned" / "checkpoints" / "best.ckpt")
    kept = sum(layer.num_channels or 0 for layer in run.classifier.layers.values() if layer.kind == "conv")
    assert kept == sum(row["removed"] == "no" for row in filters)
    # Parameters, multiply-adds and megabytes fall.
    assert all(after[i] < before[i] for i in (2, 3, 5))
    assert sum(p.numel() for p in filterscope.load(tmp_path / "pruned").parameters()) == after[2]


def test_an_interrupted_pruned_run_resumes_to_the_same_bits(
    source: Path,
    composed: Compose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = (f"model.weights={source}", "prune=share", "trainer.max_epochs=2", "visuals=none")
    train(composed(*TINY, *options), tmp_path / "whole")
    loss, seen = FinetuneModule.loss, []

    def interrupted(self: FinetuneModule, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen.append(1)
        if self.epoch == 1:
            raise KeyboardInterrupt
        return loss(self, logits, labels)

    with monkeypatch.context() as patched:
        patched.setattr(FinetuneModule, "loss", interrupted)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            train(composed(*TINY, *options), tmp_path / "resumed")
    shutil.copytree(tmp_path / "resumed", tmp_path / "bare")
    train(composed(*TINY, *options) | {"resume": str(tmp_path / "resumed")}, tmp_path / "resumed")
    one, other = (weights_of(tmp_path / name) for name in ("whole", "resumed"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert len(rows_of(tmp_path / "resumed" / SUMMARY)) == 3
    (tmp_path / "bare" / SUMMARY).write_text("network,accuracy\nbefore,unknown\n")
    with caplog.at_level("WARNING", "filterscope"):
        train(composed(*TINY, *options) | {"resume": str(tmp_path / "bare")}, tmp_path / "bare")
    assert any(f"{SUMMARY} cannot be read" in line and "\n" not in line for line in caplog.messages)
    assert [row["network"] for row in rows_of(tmp_path / "bare" / SUMMARY)] == ["after the training"]


def test_pruning_needs_a_run_of_the_same_network(source: Path, composed: Compose, tmp_path: Path) -> None:
    other = composed(*TINY, f"model.weights={source}", "prune=unused", "head=append", "visuals=none")
    with pytest.raises(UserError, match=r"prune: .*source holds small_cnn with another head or other layers"):
        train(other, tmp_path / "other")
    assert not (tmp_path / "other" / "checkpoints").exists()
    classes = composed(*TINY, f"model.weights={source}", "prune=unused", "visuals=none")
    classes["data"]["exclude"] = [build_data(classes).class_names[0]]
    with pytest.raises(UserError, match="was trained on other classes"):
        train(classes, tmp_path / "other")


def test_wrong_options_are_one_clear_line(composed: Compose, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"prune starts from a trained run: give model.weights=outputs/<run>, not null"):
        check_config(composed(*TINY, "prune=unused"))
    cfg = composed(*TINY, f"model.weights={tmp_path}", "prune=share", "prune.share=1")
    with pytest.raises(UserError, match=r"prune\.share=1: must be a number above 0 and (at most|lt|less than|below) 1"):
        train(cfg, tmp_path / "run")
