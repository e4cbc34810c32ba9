"""Training on cached features gives the same result, and a cache belongs to its weights, images and augmentation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from train import train

from filterscope.config import factory
from filterscope.config.trainer_factory import build_trainer
from filterscope.data.folder import FolderDataModule
from filterscope.data.preprocessing import Augmentation
from filterscope.data.synthetic_flowers import SyntheticFlowersDataModule
from filterscope.errors import UserError
from filterscope.models import heads
from filterscope.models.backbone import small_cnn_backbone
from filterscope.models.split_network import SplitNetwork, split_at
from filterscope.training.feature_cache import FeatureCache, FeatureStore
from filterscope.training.policies import LastBlocks
from run_files import rows_of, scalars_of, weights_of
from tiny import TINY

Compose = Callable[..., dict[str, Any]]
POLICIES = ("linear_probe", "gradual", "last_blocks")


def split_small_cnn(seed: int = 0) -> SplitNetwork:
    torch.manual_seed(seed)
    network = heads.replace(small_cnn_backbone(in_channels=3, image_size=24), num_classes=10)
    network.image_size = 24
    found = split_at(network.eval())
    assert found is not None
    return found


def images(**options: Any) -> SyntheticFlowersDataModule:
    return SyntheticFlowersDataModule(**{"image_size": 24, "num_train": 50, "num_val": 20, "batch_size": 16} | options)


def store(
    network: SplitNetwork, data: Any, folder: Path | None = None, computed_with: tuple[object, ...] = ()
) -> FeatureStore:
    def compute(some: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return network.features(some)

    return FeatureStore(network, data, compute=compute, computed_with=computed_with, folder=folder)


def without_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the whole network on images in every epoch."""
    monkeypatch.setattr(FeatureCache, "setup", lambda *_, **__: None)


def test_cached_features_are_bit_identical_to_those_of_the_images(tmp_path: Path) -> None:
    network, data = split_small_cnn(), images()
    with torch.no_grad():
        true = torch.cat([network.features(some) for some, _ in data.ordered("train", augmentation_epoch=None)])
    assert torch.equal(store(network, data).features(None), true)
    assert torch.equal(store(network, data, tmp_path).features(None), true)
    assert torch.equal(store(network, data, tmp_path).features(None), true)  # read from disk


def test_each_cached_augmentation_is_that_of_its_epoch(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("red", "blue"):
        (tmp_path / name).mkdir()
        for number in range(5):
            Image.effect_noise((40, 30), 90 + number).convert("RGB").save(tmp_path / name / f"{number}.png")
    data = FolderDataModule(root=str(tmp_path), image_size=24, num_workers=0, batch_size=3, augment=Augmentation())
    network = split_small_cnn()
    cached = store(network, data)
    loader = data.train_dataloader()
    for epoch in (0, 1):
        data.epoch = epoch
        order = [index for _, index in loader.sampler]
        seen = torch.cat([some for some, _ in loader])
        with torch.no_grad():
            true = network.features(seen)
        assert torch.allclose(cached.features(epoch)[order[: len(true)]], true, atol=1e-6)
    assert not torch.equal(cached.features(0), cached.features(1))


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda: store(split_small_cnn(), images()), True),
        (lambda: store(split_small_cnn(seed=1), images()), False),
        (lambda: store(split_small_cnn(), images(seed=1)), False),
        (lambda: store(split_small_cnn(), images(num_train=51)), False),
        (lambda: store(split_small_cnn(), images(), computed_with=("bf16-mixed",)), False),
    ],
)
def test_other_weights_images_or_precision_are_another_cache(change: Callable[[], FeatureStore], same: bool) -> None:
    assert (change().key(None) == store(split_small_cnn(), images()).key(None)) is same


def test_another_augmentation_is_another_cache() -> None:
    cached = store(split_small_cnn(), images())
    assert len({cached.key(augmentation) for augmentation in (None, 0, 1)}) == 3


def test_features_of_changed_weights_are_computed_again(tmp_path: Path) -> None:
    network, data = split_small_cnn(), images()
    before = store(network, data, tmp_path).features(None)
    with torch.no_grad():
        next(network.trunk[0].parameters()).add_(0.1)
        true = torch.cat([network.features(some) for some, _ in data.ordered("train", augmentation_epoch=None)])
    assert torch.equal(store(network, data, tmp_path).features(None), true)
    assert not torch.equal(before, true)


@pytest.mark.parametrize("finetune", POLICIES)
def test_a_run_on_cached_features_learns_the_same(
    finetune: str, composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*TINY, f"finetune={finetune}", "visuals=health", "data.batch_size=10", "trainer.max_epochs=4"]
    if finetune == "gradual":
        options.append("finetune.release_epoch=3")
    train(composed(*options), tmp_path / "cached")
    without_cache(monkeypatch)
    train(composed(*options), tmp_path / "run")
    cached, run = weights_of(tmp_path / "cached"), weights_of(tmp_path / "run")
    for name, tensor in run.items():
        assert torch.allclose(cached[name].float(), tensor.float(), atol=1e-5), name
    for one, other in zip(rows_of(tmp_path / "cached"), rows_of(tmp_path / "run"), strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert bool(one[name]) == bool(other[name]), name
            if one[name]:
                assert float(one[name]) == pytest.approx(float(other[name]), abs=1e-4), name
    steps = [steps_of(tmp_path / name) for name in ("cached", "run")]
    assert steps[0].keys() == steps[1].keys() == {20}
    assert steps[0][20] == pytest.approx(steps[1][20], abs=1e-4)


def steps_of(folder: Path) -> dict[int, float]:
    return dict(scalars_of(folder)["train/loss_step"])


@pytest.mark.parametrize("option", ["trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=0.05"])
def test_accumulation_and_clipping_are_those_of_lightning(
    option: str, composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (*TINY, "finetune=linear_probe", "visuals=none", option)
    train(composed(*options), tmp_path / "cached")
    without_cache(monkeypatch)
    train(composed(*options), tmp_path / "run")
    cached, run = weights_of(tmp_path / "cached"), weights_of(tmp_path / "run")
    assert torch.allclose(cached["classifier.head.weight"], run["classifier.head.weight"], atol=1e-5)


def test_the_trunk_runs_once_for_each_image_whatever_the_number_of_epochs(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from filterscope.models.backbone import Backbone

    seen = []
    forward = Backbone.forward
    monkeypatch.setattr(
        Backbone, "forward", lambda self, some: (seen.append(len(some) * some.is_cpu), forward(self, some))[1]
    )
    train(composed(*TINY, "finetune=linear_probe", "visuals=none", "data.num_test=0", "trainer.max_epochs=6"), tmp_path)
    assert sum(seen) <= 60 + 30 + 4  # training and validation images, and a few to try things out


def test_a_second_run_reads_the_features_of_the_first(composed: Compose, tmp_path: Path) -> None:
    options = (*TINY, "finetune=linear_probe", "visuals=none", f"feature_cache={tmp_path / 'cache'}")
    train(composed(*options), tmp_path / "first")
    (file,) = (tmp_path / "cache").glob("features/*/features.bin")
    written = file.stat().st_mtime_ns
    train(composed(*options, "optimizer.lr=0.001"), tmp_path / "second")
    assert [path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("features/*/features.bin")] == [written]


def test_a_feature_cache_that_cannot_be_written_is_one_line(composed: Compose, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cfg = composed(*TINY, "finetune=linear_probe", "visuals=none", f"feature_cache={tmp_path / 'file'}")
    with pytest.raises(UserError, match=r"feature_cache=.*file.* cannot be written"):
        train(cfg, tmp_path / "run")


def test_full_training_caches_no_features(composed: Compose, tmp_path: Path) -> None:
    cfg = composed(*TINY, "finetune=full", "visuals=none")
    data = factory.build_data(cfg)
    module = factory.build_module(cfg, factory.build_classifier(cfg, data), data)
    trainer = build_trainer(cfg, tmp_path, {})
    trainer.validate(module, data, verbose=False)
    assert data.batch_source is None


def test_with_mixed_images_a_line_says_that_no_features_are_cached(
    composed: Compose, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = composed(*TINY, "finetune=linear_probe", "finetune.cached_augmentations=1", "mix=mixup", "visuals=none")
    with caplog.at_level("INFO"):
        train(cfg, tmp_path)
    assert "no features of training images are cached: mixed images (mix=…) are new in every epoch" in caplog.text


def test_last_blocks_leaves_the_layers_before_bit_identical(composed: Compose, tmp_path: Path) -> None:
    options = (*TINY, "finetune=last_blocks", "visuals=none")
    train(composed(*options, "trainer.max_epochs=0"), tmp_path / "before")
    train(composed(*options), tmp_path / "after")
    before, after = weights_of(tmp_path / "before"), weights_of(tmp_path / "after")
    changed = {
        name.split(".")[3] for name in before if "network" in name and not torch.equal(before[name], after[name])
    }
    assert changed == {"conv2", "fc1"}


@pytest.mark.parametrize("blocks", [0, 2])
def test_last_blocks_names_how_many_there_are(blocks: int) -> None:
    with pytest.raises(UserError, match=f"finetune.blocks={blocks}: small_cnn has 2 blocks"):
        LastBlocks(blocks=blocks).freeze(split_small_cnn().classifier)
