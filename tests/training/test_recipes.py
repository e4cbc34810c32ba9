"""Mixing, averaging, class weights, decayed rates: each does what it says, and a resumed run repeats it to the bit."""

import logging
import os
import signal

import pytest
import torch
from train import train

from filterscope.config.trainer_factory import build_trainer
from filterscope.errors import UserError
from filterscope.models import heads
from filterscope.models.backbone import torchvision_backbone
from filterscope.models.weights import on_meta_device
from filterscope.runtime.signals import Stopped, stop_request
from filterscope.training.metrics_log import EpochProgressBar
from filterscope.training.mix import logits_over_views, mixer
from filterscope.training.policies import Full
from resumed_runs import assert_alike, own_signals, stop_in
from run_files import checkpoint_of, rows_of, weights_of
from tiny import TINY

__all__ = ["own_signals"]
EVERYTHING = (
    "mix=both", "callbacks=[ema,early_stopping,step_sizes]", "callbacks.ema.decay=0.5", "finetune.layer_decay=0.7",
    "class_weights=balanced", "data.sampling=balanced", "trainer.accumulate_grad_batches=2",
    "trainer.gradient_clip_val=0.5", "test.augment=flip", "trainer.max_epochs=3",
)  # fmt: skip
RECYCLE = (
    "callbacks=recycle", "callbacks.recycle.every_epochs=1", "callbacks.recycle.until=1", "callbacks.recycle.share=0.5",
    "callbacks.recycle.images=8", "optimizer=adam", "trainer.max_epochs=3", "visuals=filters",
)  # fmt: skip
SWA = ("callbacks=swa", "callbacks.swa.start=0.3", "mix=mixup", "trainer.max_epochs=3", "visuals=filters")


@pytest.mark.parametrize(("options", "step"), [((*EVERYTHING, "visuals=[filters,health]"), 2), (SWA, 4), (RECYCLE, 4)])
def test_a_run_with_all_recipes_resumes_to_the_bit(options, step, composed, tmp_path, monkeypatch):
    train(composed(*TINY, *options), tmp_path / "whole")
    stop_in(step, monkeypatch, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped):
        train(composed(*TINY, *options), tmp_path / "run")
    monkeypatch.undo()
    stop_request.requested = None
    train(composed(*TINY, *options) | {"resume": str(tmp_path / "run")}, tmp_path / "run")
    assert_alike(tmp_path / "run", tmp_path / "whole")


def test_recycled_filters_are_told_and_do_not_go_with_averages(composed, tmp_path):
    pytest.importorskip("torch_pruning", reason="torch-pruning is not installed")
    train(composed(*TINY, *RECYCLE), tmp_path / "run")
    rows = rows_of(tmp_path / "run" / "recycled.csv")
    assert {row["after_epoch"] for row in rows} == {"1", "2"}
    assert all(row["verdict"] in ("noise", "dead") and row["verdict_now"] for row in rows)
    with pytest.raises(UserError, match="callbacks=recycle cannot run with ema or swa"):
        train(composed(*TINY, "callbacks=[recycle,ema]", "visuals=none"), tmp_path / "other")


def test_a_training_too_short_to_recycle_anything_is_a_warning(composed, tmp_path, caplog):
    pytest.importorskip("torch_pruning", reason="torch-pruning is not installed")
    train(composed(*TINY, "callbacks=recycle", "visuals=none"), tmp_path)
    assert "callbacks=recycle recycles nothing in 2 epochs: the first time would be after epoch 5" in caplog.text


def test_looking_changes_nothing_with_all_recipes(composed, tmp_path):
    ends = []
    for name, visuals in (("seen", "visuals=[filters,health,predictions]"), ("unseen", "visuals=none")):
        train(composed(*TINY, *EVERYTHING, visuals), tmp_path / name)
        ends.append(checkpoint_of(tmp_path / name))
    for part in ("state_dict", "current_model_state"):
        assert ends[0][part].keys() == ends[1][part].keys()
        assert all(torch.equal(tensor, ends[1][part][key]) for key, tensor in ends[0][part].items())


def test_pictures_and_checkpoints_show_the_averaged_weights(composed, tmp_path):
    options = ("callbacks=ema", "callbacks.ema.decay=0.9", "visuals=filters", "trainer.max_epochs=1")
    train(composed(*TINY, *options), tmp_path)
    last = checkpoint_of(tmp_path)
    key = "classifier.backbone.network.conv1.weight"
    assert not torch.equal(last["state_dict"][key], last["current_model_state"][key])
    from filterscope.config.from_checkpoint import load  # as visualize.py reads it

    assert torch.equal(load(tmp_path).backbone.network.conv1.weight, last["state_dict"][key])


def test_a_short_run_with_default_ema_ends_near_the_trained_weights_and_keeps_frozen_bits(composed, tmp_path):
    for name, options in (("start", ["trainer.max_epochs=0"]), ("run", ["callbacks=ema", "trainer.max_epochs=4"])):
        train(composed(*TINY, "visuals=none", "finetune=last_blocks", *options), tmp_path / name)
    start, end = (torch.load(tmp_path / f"{n}/checkpoints/last.ckpt", weights_only=True) for n in ("start", "run"))
    frozen, trained = (f"classifier.backbone.network.conv{i}.weight" for i in (1, 2))
    assert torch.equal(end["state_dict"][frozen], start["state_dict"][frozen])
    average, last, first = end["state_dict"][trained], end["current_model_state"][trained], start["state_dict"][trained]
    assert 0 < (average - last).norm() < (average - first).norm() / 2


@pytest.mark.parametrize(("callbacks", "shown"), [("ema", False), ("[default,ema]", True)])
def test_lightning_adds_no_progress_bar_of_its_own(callbacks, shown, composed, tmp_path):
    config = composed(*TINY, f"callbacks={callbacks}", "trainer.enable_progress_bar=true")
    bar = build_trainer(config, tmp_path, {}).progress_bar_callback
    assert isinstance(bar, EpochProgressBar) if shown else bar is None


def test_swa_is_the_mean_of_the_last_epochs(composed, tmp_path):
    options = ("visuals=none", "trainer.max_epochs=4", "schedule=constant")
    weights = []
    for epochs in (3, 4):
        train(composed(*TINY, *options, f"trainer.max_epochs={epochs}"), tmp_path / str(epochs))
        weights.append(torch.load(tmp_path / str(epochs) / "checkpoints/last.ckpt", weights_only=True)["state_dict"])
    train(composed(*TINY, *options, "callbacks=swa", "callbacks.swa.start=0.5"), tmp_path / "swa")
    mean = weights_of(tmp_path / "swa")
    for key, tensor in mean.items():
        if key.startswith("classifier"):
            torch.testing.assert_close(tensor, (weights[0][key] + weights[1][key]) / 2)


def test_the_size_of_a_step_is_what_plain_gradient_descent_makes_it(composed, tmp_path):
    descent = (
        "optimizer=sgd", "optimizer.lr=0.01", "optimizer.momentum=0", "optimizer.nesterov=false",
        "optimizer.weight_decay=0", "finetune.first_layer_weight_decay=0", "finetune.first_layer_lr_factor=3",
        "schedule=constant", "data.batch_size=60",
    )  # fmt: skip
    train(composed(*TINY, *descent, "visuals=none", "callbacks=step_sizes"), tmp_path)
    row = {name: float(value) for name, value in rows_of(tmp_path / "metrics.csv")[1].items() if value}
    first = weights_of(tmp_path)
    for layer, where, factor in (("block1_conv1", "backbone.network.conv1", 3), ("fc1", "backbone.network.fc1", 1)):
        size = torch.cat([first[f"classifier.{where}.{kind}"].flatten() for kind in ("weight", "bias")]).norm()
        moved = 0.01 * factor * row[f"optimizer/gradient_norm/{layer}"]
        assert row[f"optimizer/update_ratio/{layer}"] * float(size) == pytest.approx(moved, rel=0.05)
    assert row["optimizer/learning_rate/first_layer"] == pytest.approx(0.03)
    assert (tmp_path / "pictures" / "optimizer" / "steps" / "epoch_002.png").is_file()


@pytest.mark.parametrize("alphas", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
def test_mixed_labels_are_the_shares_of_the_mixed_images(alphas):
    transform = mixer(num_classes=3, **alphas)
    labels = torch.tensor([0, 1, 2, 1])
    images = torch.nn.functional.one_hot(labels, 3).float()[:, :, None, None].expand(4, 3, 8, 8).contiguous()
    torch.manual_seed(0)
    mixed, targets = transform(images, labels)
    torch.testing.assert_close(mixed.mean((2, 3)), targets)
    assert not torch.equal(mixed, images)
    assert mixer(num_classes=3) is None


def test_views_are_averaged_as_probabilities():
    images = torch.rand(2, 3, 16, 16)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 4))
    expected = (network(images).softmax(1) + network(images.flip(-1)).softmax(1)) / 2
    torch.testing.assert_close(logits_over_views(network, images, "flip").exp(), expected)
    same = torch.full((1, 3, 16, 16), 0.3)
    torch.testing.assert_close(logits_over_views(network, same, "five_crop").exp(), network(same).softmax(1))


@pytest.mark.parametrize(("name", "blocks"), [("resnet18", 5), ("vgg11", 6), ("vit_b_16", 13)])
def test_learning_rates_decay_block_by_block_towards_the_first(name, blocks):
    with on_meta_device():
        classifier = heads.replace(torchvision_backbone(name=name, weights=None), num_classes=3)
    groups = Full(layer_decay=0.5, backbone_lr_factor=1, first_layer_lr_factor=1).groups(classifier, 1.0, 0.1)
    owners = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert len(owners) == sum(len(group["params"]) for group in groups) == len(list(classifier.parameters()))
    rates = [owners[id(p)] for p in classifier.backbone.parameters()]
    assert rates == sorted(rates)
    assert sorted(set(rates)) == [0.5**i for i in reversed(range(blocks))]
    assert owners[id(classifier.head.weight)] == 1


def test_balanced_sampling_and_weights_even_out_the_classes():
    from filterscope.data.synthetic_flowers import SyntheticFlowersDataModule

    data = SyntheticFlowersDataModule(image_size=24, num_train=60, num_val=30, num_test=20, sampling="balanced")
    data.setup("fit")
    images = data._splits["train"]
    keep = torch.cat([(images.labels == 0).nonzero().flatten()[:1], (images.labels > 0).nonzero().flatten()])
    data._splits["train"] = images.select(keep, images.labels[keep])
    seen = []
    for epoch in range(40):
        data.epoch = epoch
        seen += [labels for _, labels in data.train_dataloader()]
    counts = torch.bincount(torch.cat(seen), minlength=10)
    assert counts.min() > 0.7 * counts.max()
    weights = data.class_weights()
    torch.testing.assert_close((weights * torch.bincount(data.labels("train"))).sum(), torch.tensor(float(len(keep))))


def test_training_on_validation_images_too_keeps_the_last_epoch(composed, tmp_path, caplog):
    config = composed(*TINY, "data.train_splits=[train,val]", "visuals=none", "schedule=constant")
    with caplog.at_level(logging.INFO, "filterscope"):
        train(config, tmp_path)
    assert any("val/… is no measure" in line for line in caplog.messages)
    assert "train 90, val 30, test 20 images" in caplog.text
    checkpoints = [torch.load(tmp_path / "checkpoints" / f"{n}.ckpt", weights_only=True) for n in ("best", "last")]
    assert all(
        torch.equal(tensor, checkpoints[1]["state_dict"][k]) for k, tensor in checkpoints[0]["state_dict"].items()
    )
    with pytest.raises(UserError, match=r"callbacks\.early_stopping cannot watch val/"):
        train(composed(*TINY, "data.train_splits=[train,val]", "callbacks=early_stopping"), tmp_path / "stopping")
