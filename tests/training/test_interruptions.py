"""A run that is stopped or killed, and gone on with, ends with the same bits as one that never was."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from train import train

from filterscope.errors import UserError
from filterscope.runtime.signals import Stopped, stop_request
from filterscope.training.checkpoints import RunCheckpoints
from filterscope.training.module import FinetuneModule
from filterscope.training.preemption import FiniteLoss
from filterscope.training.resume import remove_later_outputs
from resumed_runs import assert_alike, events_of, files_of, own_signals, stop_in, weights_of  # noqa: F401
from run_files import checkpoint_of, rows_of
from tiny import TINY

Compose = Callable[..., dict[str, Any]]
LOOKS = ("visuals=[filters,predictions,health]", "trainer.max_epochs=3")
GRADUAL = ("finetune=gradual", "finetune.release_epoch=1")
STEPS = 3  # in an epoch


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that nothing interrupted."""
    import hydra

    from filterscope.cli.main import resolve_config
    from tiny import REPOSITORY

    folder = tmp_path_factory.mktemp("whole")
    with hydra.initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        train(resolve_config(hydra.compose("train", [*TINY, *LOOKS])), folder)
    return folder


@pytest.mark.parametrize("where", ["health", "numbers"])
def test_a_stored_state_of_visuals_that_does_not_fit_is_left_out_or_refused(
    where: str, whole: Path, composed: Compose, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    content["filterscope"]["visual_state"]["store"][where] = "x"
    torch.save(content, last)
    cfg = composed(*TINY, "visuals=[filters,predictions,health]", "trainer.max_epochs=4")
    if where == "numbers":  # not of a visual
        with pytest.raises(UserError, match="does not fit its run"):
            train(cfg | {"resume": str(tmp_path / "run")}, tmp_path / "run")
        return
    train(cfg | {"resume": str(tmp_path / "run")}, tmp_path / "run")
    assert "the state of the visuals in the checkpoint does not fit" in caplog.text
    assert (tmp_path / "run" / "health" / "epoch_004.csv").is_file()


class Gone(Exception):
    """Stands for a process that is no more."""


@pytest.mark.parametrize("step", [0, 1, 4, 7])
def test_a_signal_inside_an_epoch_saves_that_step(
    step: int, whole: Path, composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_in(step, monkeypatch, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped) as stopped:
        train(composed(*TINY, *LOOKS), tmp_path)
    monkeypatch.undo()
    assert stopped.value.exit_code == 143
    assert checkpoint_of(tmp_path, "midway")["global_step"] == step + 1
    stop_request.requested = None
    train(composed(*TINY, *LOOKS) | {"resume": str(tmp_path)}, tmp_path)
    assert not (tmp_path / "checkpoints" / "midway.ckpt").exists()
    assert_alike(tmp_path, whole)


@pytest.mark.parametrize("step", [STEPS, STEPS + 1])
def test_a_signal_after_a_backbone_was_released(
    step: int, composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(composed(*TINY, *LOOKS, *GRADUAL), tmp_path / "whole")
    stop_in(step, monkeypatch, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped):
        train(composed(*TINY, *LOOKS, *GRADUAL), tmp_path / "run")
    monkeypatch.undo()
    stop_request.requested = None
    train(composed(*TINY, *LOOKS, *GRADUAL) | {"resume": str(tmp_path / "run")}, tmp_path / "run")
    assert_alike(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("step", [1, STEPS + 1])
def test_a_signal_inside_an_epoch_on_cached_features_saves_that_step(
    step: int, composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (*TINY, *LOOKS, "finetune=linear_probe")
    train(composed(*options), tmp_path / "whole")
    stop_in(step, monkeypatch, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped):
        train(composed(*options), tmp_path / "run")
    monkeypatch.undo()
    midway = tmp_path / "run" / "checkpoints" / "midway.ckpt"
    assert torch.load(midway, weights_only=True)["global_step"] == step + 1
    stop_request.requested = None
    train(composed(*options) | {"resume": str(tmp_path / "run")}, tmp_path / "run")
    assert_alike(tmp_path / "run", tmp_path / "whole")


def test_a_signal_in_the_last_step_of_an_epoch_finishes_the_epoch_first(
    whole: Path, composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_in(2 * STEPS - 1, monkeypatch, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Stopped) as stopped:
        train(composed(*TINY, *LOOKS), tmp_path)
    monkeypatch.undo()
    assert stopped.value.exit_code == 130
    assert not (tmp_path / "checkpoints" / "midway.ckpt").exists()
    assert checkpoint_of(tmp_path)["global_step"] == 2 * STEPS
    stop_request.requested = None
    train(composed(*TINY, *LOOKS) | {"resume": str(tmp_path)}, tmp_path)
    assert_alike(tmp_path, whole)


@pytest.mark.parametrize("step", [0, 1, 5])
def test_a_run_that_died_repeats_the_epoch_and_leaves_nothing_twice(
    step: int, whole: Path, composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die() -> None:
        raise Gone

    stop_in(step, monkeypatch, die)
    with pytest.raises(Gone):
        train(composed(*TINY, *LOOKS), tmp_path)
    monkeypatch.undo()
    (tmp_path / "pictures" / ".left.png.1.partial").write_bytes(b"half")
    train(composed(*TINY, *LOOKS) | {"resume": str(tmp_path)}, tmp_path)
    assert_alike(tmp_path, whole)


@pytest.mark.parametrize("sign", [".hydra", ".lock", "checkpoints", "metrics.csv"])
def test_resuming_takes_back_nothing_of_other_runs_in_the_folder(sign: str, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "sweep" / "other"):
        (folder / "pictures").mkdir(parents=True)
        (folder / "pictures" / "epoch_003.png").touch()
        (folder / "pictures" / ".epoch_004.png.7.partial").touch()
    (tmp_path / "sweep" / "other" / sign).touch()
    remove_later_outputs(tmp_path, None)
    assert not list((tmp_path / "pictures").iterdir())
    assert len(list((tmp_path / "sweep" / "other" / "pictures").iterdir())) == 2


def test_long_epochs_are_saved_inside(
    whole: Path, composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    save = RunCheckpoints.save_midway

    def save_midway(self: RunCheckpoints, trainer: Any) -> None:
        save(self, trainer)
        saved.append(trainer.global_step)
        if trainer.global_step == 5:
            raise Gone

    monkeypatch.setattr(RunCheckpoints, "save_midway", save_midway)
    often = ("callbacks.preemption.every_minutes=0",)
    with pytest.raises(Gone):
        train(composed(*TINY, *LOOKS, *often), tmp_path)
    assert saved == [1, 2, 4, 5]
    monkeypatch.undo()
    train(composed(*TINY, *LOOKS) | {"resume": str(tmp_path)}, tmp_path)
    assert_alike(tmp_path, whole)


def test_a_finished_run_is_tested_again_and_nothing_changes(whole: Path, composed: Compose, tmp_path: Path) -> None:
    before = files_of(whole)
    train(composed(*TINY, *LOOKS) | {"resume": str(whole)}, whole)
    assert files_of(whole) == before
    del tmp_path


def test_fewer_epochs_than_are_done_is_refused(whole: Path, composed: Compose) -> None:
    cfg = composed(*TINY, *LOOKS, "trainer.max_epochs=2") | {"resume": str(whole)}
    before = files_of(whole)
    with pytest.raises(UserError, match=r"3 finished epochs, trainer\.max_epochs=2 is fewer"):
        train(cfg, whole)
    assert files_of(whole) == before


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_checkpoint(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poison(self: FinetuneModule, _batch: Any, _index: int) -> None:
        if self.global_step == STEPS + 1:
            with torch.no_grad():
                next(self.classifier.parameters()).fill_(float("nan"))

    monkeypatch.setattr(FinetuneModule, "on_train_batch_start", poison)
    with pytest.raises(UserError, match=r"training diverged: the loss is not finite since step \d+ \(epoch 2\)"):
        train(composed(*TINY, *LOOKS), tmp_path)
    saved = checkpoint_of(tmp_path)
    assert saved["global_step"] == STEPS
    assert all(tensor.isfinite().all() for tensor in saved["state_dict"].values())


@pytest.mark.parametrize(("precision", "survived"), [("16-mixed", 19), ("32-true", 0)])
def test_float16_survives_some_losses_that_overflow(precision: str, survived: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    trainer: Any = SimpleNamespace(precision=precision, is_last_batch=False, gradient_clip_val=None, current_epoch=0)
    trainer.optimizers, trainer.callbacks, watch = [optimizer], [], FiniteLoss()

    def step(loss: float) -> None:
        trainer.global_step += 1
        watch.on_train_batch_end(trainer, None, {"loss": torch.tensor(loss)}, None, 0)

    trainer.global_step = 4
    for loss in (*[float("inf")] * survived, 1.0, *[float("inf")] * survived):
        step(loss)
    with pytest.raises(UserError, match=f"the loss is not finite since step {6 + survived} "):
        step(float("inf"))


def test_a_damaged_checkpoint_is_refused_before_anything_is_taken_back(composed: Compose, tmp_path: Path) -> None:
    train(composed(*TINY, "visuals=filters", "trainer.max_epochs=1"), tmp_path)
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-3000])
    before = files_of(tmp_path)
    with pytest.raises(UserError, match=r"last\.ckpt is not a readable checkpoint"):
        train(composed(*TINY, "visuals=filters") | {"resume": str(tmp_path)}, tmp_path)
    assert files_of(tmp_path) == before


def test_every_row_of_metrics_stands_once(whole: Path) -> None:
    assert [row["epoch"] for row in rows_of(whole / "metrics.csv")] == ["0", "1", "2", "3"]
