"""Trainer arguments work as Lightning documents them, with cached features too, and torch's schedules fit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from train import train

from filterscope.config import factory
from filterscope.config.trainer_factory import build_trainer
from filterscope.errors import UserError
from filterscope.training.module import FinetuneModule
from run_files import checkpoint_of, rows_of, scalars_of, weights_of
from tiny import TINY

Compose = Callable[..., dict[str, Any]]
QUICK = (*TINY, "visuals=none", "data.num_test=0")
STEPS = 3  # in an epoch
FINETUNE = ("full", "linear_probe")


def steps_of(folder: Path, tag: str) -> list[int]:
    return [step for step, _ in scalars_of(folder).get(tag, [])]


def last_checkpoint(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = checkpoint_of(folder)
    return content


@pytest.mark.parametrize("finetune", FINETUNE)
def test_the_loss_of_every_nth_step_is_logged(finetune: str, composed: Compose, tmp_path: Path) -> None:
    train(composed(*QUICK, f"finetune={finetune}", "trainer.log_every_n_steps=2"), tmp_path)
    assert steps_of(tmp_path, "train/loss_step") == [2, 4, 6]


@pytest.mark.parametrize("finetune", FINETUNE)
def test_a_fast_dev_run_trains_one_batch_and_writes_nothing(finetune: str, composed: Compose, tmp_path: Path) -> None:
    cfg = composed(*TINY, f"finetune={finetune}", "visuals=[filters,health]", "trainer.fast_dev_run=true")
    train(cfg, tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("finetune", FINETUNE)
def test_a_run_can_end_after_some_steps(finetune: str, composed: Compose, tmp_path: Path) -> None:
    train(composed(*QUICK, f"finetune={finetune}", "trainer.max_epochs=9", "trainer.max_steps=4"), tmp_path)
    assert last_checkpoint(tmp_path)["global_step"] == 4
    assert [row["epoch"] for row in rows_of(tmp_path)] == ["0", "1", "2"]


@pytest.mark.parametrize("finetune", FINETUNE)
def test_an_epoch_without_validation_has_a_last_checkpoint_and_no_score(
    finetune: str, composed: Compose, tmp_path: Path
) -> None:
    options = ("trainer.max_epochs=3", "trainer.check_val_every_n_epoch=2")
    train(composed(*QUICK, f"finetune={finetune}", *options), tmp_path)
    assert [bool(row["val/acc"]) for row in rows_of(tmp_path)] == [True, False, True, False]
    assert last_checkpoint(tmp_path)["global_step"] == 3 * STEPS
    best = checkpoint_of(tmp_path, "best")
    assert best["global_step"] == 2 * STEPS


def test_without_validation_the_last_epoch_is_the_best(composed: Compose, tmp_path: Path) -> None:
    train(composed(*QUICK, "finetune=full", "trainer.limit_val_batches=0"), tmp_path)
    best = checkpoint_of(tmp_path, "best")
    assert best["global_step"] == 2 * STEPS
    assert "val/acc" not in rows_of(tmp_path)[-1]


def test_overfitting_repeats_the_same_batches(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    step = FinetuneModule.training_step

    def training_step(self: FinetuneModule, batch: Any, index: int) -> torch.Tensor:
        seen.append(batch[1].clone())
        return step(self, batch, index)

    monkeypatch.setattr(FinetuneModule, "training_step", training_step)
    train(composed(*QUICK, "finetune=full", "trainer.overfit_batches=2"), tmp_path)
    assert len(seen) == 4
    assert torch.equal(torch.cat(seen[:2]), torch.cat(seen[2:]))


@pytest.mark.parametrize("finetune", FINETUNE)
@pytest.mark.parametrize(
    ("options", "steps"),
    [
        (("trainer.limit_train_batches=2",), 4),
        (("trainer.limit_train_batches=0.67",), 4),
        (("trainer.accumulate_grad_batches=2",), 4),
        (("trainer.gradient_clip_val=1",), 6),
        (("trainer.limit_val_batches=1",), 6),
        (("+trainer.val_check_interval=2",), 6),
        (("trainer.num_sanity_val_steps=1",), 6),
    ],
)
def test_other_limits_are_those_of_lightning(
    finetune: str, options: tuple[str, ...], steps: int, composed: Compose, tmp_path: Path
) -> None:
    train(composed(*QUICK, f"finetune={finetune}", *options), tmp_path)
    assert last_checkpoint(tmp_path)["global_step"] == steps
    assert len(rows_of(tmp_path)) == 3


def test_schedules_of_torch_are_advanced_every_epoch(composed: Compose, tmp_path: Path) -> None:
    monitor = "+callbacks.lr_monitor={_target_: pytorch_lightning.callbacks.LearningRateMonitor}"
    options = ("finetune=linear_probe", "trainer.max_epochs=3", "optimizer.lr=1", "trainer.log_every_n_steps=1")
    train(composed(*QUICK, *options, "schedule=step", "schedule.step_size=1", monitor), tmp_path)
    logged = scalars_of(tmp_path)
    (tag,) = (name for name in logged if name.startswith("lr-") and name.endswith("/head"))
    rates = [value for _, value in logged[tag]]
    assert rates == pytest.approx([1, 0.1, 0.01])


def test_a_rate_is_lowered_when_the_validation_loss_stays(composed: Compose, tmp_path: Path) -> None:
    options = ("finetune=linear_probe", "trainer.max_epochs=4", "optimizer.lr=0", "schedule.patience=0")
    train(composed(*QUICK, *options, "schedule=plateau"), tmp_path)
    assert last_checkpoint(tmp_path)["lr_schedulers"][0]["num_bad_epochs"] == 0
    assert last_checkpoint(tmp_path)["lr_schedulers"][0]["last_epoch"] >= 2


def test_a_schedule_with_total_steps_gets_them(composed: Compose, tmp_path: Path) -> None:
    cfg = composed(*QUICK, "finetune=full")
    cfg["schedule"] = {"_target_": "torch.optim.lr_scheduler.OneCycleLR", "_partial_": True, "max_lr": 0.1}
    train(cfg, tmp_path)
    assert last_checkpoint(tmp_path)["lr_schedulers"][0]["total_steps"] == 2 * STEPS


def test_metrics_reach_every_logger_with_the_number_of_finished_epochs(composed: Compose, tmp_path: Path) -> None:
    train(composed(*QUICK, "finetune=full", "logger=[tensorboard,csv]"), tmp_path)
    (file,) = (path for path in tmp_path.rglob("metrics.csv") if path.parent != tmp_path)
    rows = rows_of(file)
    assert [row["step"] for row in rows if row["val/acc"]] == ["0", "1", "2"]
    assert steps_of(tmp_path, "val/acc") == [0, 1, 2]


def test_the_best_checkpoint_is_tested_by_its_name(composed: Compose, tmp_path: Path) -> None:
    cfg = composed(*TINY, "visuals=none")
    data = factory.build_data(cfg)
    module = factory.build_module(cfg, factory.build_classifier(cfg, data), data)
    trainer: Trainer = build_trainer(cfg, tmp_path, {})
    trainer.fit(module, data)
    last = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    trainer.test(module, data, ckpt_path="best", verbose=False)
    best = weights_of(tmp_path, "best")
    assert all(torch.equal(tensor, best[name]) for name, tensor in module.state_dict().items())
    assert isinstance(module, LightningModule)
    assert last.keys() == best.keys()


@pytest.mark.parametrize("finetune", FINETUNE)
def test_training_that_diverges_ends_in_one_line_and_keeps_the_last_good_checkpoint(
    finetune: str, composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = FinetuneModule.loss

    def diverging(self: FinetuneModule, *arguments: Any) -> torch.Tensor:
        return loss(self, *arguments) * (float("nan") if self.global_step >= STEPS + 1 else 1)

    monkeypatch.setattr(FinetuneModule, "loss", diverging)
    with pytest.raises(UserError) as caught:
        train(composed(*QUICK, f"finetune={finetune}"), tmp_path)
    message = str(caught.value)
    assert message.startswith(
        "training diverged: the loss is not finite since step 5 (epoch 2); try a smaller learning"
    )
    assert message.endswith("last.ckpt holds the network of the epoch before")
    weights = last_checkpoint(tmp_path)["state_dict"]
    assert all(tensor.isfinite().all() for tensor in weights.values())
    assert last_checkpoint(tmp_path)["global_step"] == STEPS


@pytest.mark.parametrize(
    ("capability", "machine", "finetune", "channels_last"),
    [
        ("AVX2", "x86_64", "full", False),
        ("AVX2", "x86_64", "gradual finetune.release_epoch=1", False),
        ("AVX2", "x86_64", "gradual finetune.release_epoch=9", True),
        ("AVX2", "x86_64", "linear_probe", True),
        ("AVX512", "x86_64", "full", True),
        ("DEFAULT", "aarch64", "full", True),
    ],
)
def test_the_memory_layout_follows_from_the_processor_and_the_policy(
    capability: str,
    machine: str,
    finetune: str,
    channels_last: bool,
    composed: Compose,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr("platform.machine", lambda: machine)
    cfg = composed(*QUICK, *f"finetune={finetune}".split(), "model.allow_random=true")
    data = factory.build_data(cfg)
    module = factory.build_module(cfg, factory.build_classifier(cfg, data), data)
    images = torch.rand(2, 3, 24, 24).contiguous(memory_format=torch.channels_last)
    seen: list[torch.Tensor] = []
    module.classifier.module_of("block1_conv1").register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    module(images)
    assert seen[0].is_contiguous(memory_format=torch.channels_last) == channels_last
    given = composed(
        *QUICK, *f"finetune={finetune}".split(), "model.allow_random=true", f"channels_last={not channels_last}"
    )
    assert factory.build_module(given, module.classifier, data).channels_last != channels_last
