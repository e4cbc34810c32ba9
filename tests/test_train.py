from collections.abc import Callable
from pathlib import Path
from shutil import copy, copytree
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchvision.transforms.v2.functional import to_pil_image
from train import train

from filterscope.analysis.activations import activations
from filterscope.analysis.health.activity import POSITIONS, sample_positions
from filterscope.config.factory import build_data
from filterscope.config.from_checkpoint import open_run
from filterscope.errors import UserError
from filterscope.training.module import FinetuneModule
from run_files import checkpoint_of, rows_of, scalars_of, weights_of
from tiny import TINY

Compose = Callable[..., dict[str, Any]]


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = weights_of(one), weights_of(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def events_of(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
    events.Reload()
    return events


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished tiny run that several tests examine."""
    import hydra

    from filterscope.cli.main import resolve_config
    from tiny import REPOSITORY

    folder = tmp_path_factory.mktemp("run")
    with hydra.initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        cfg = resolve_config(hydra.compose("train", [*TINY, "visuals.synthesis.share=null"]))
    train(cfg, folder)
    return folder


LAYERS = ("block1_conv1", "block2_conv1")
TAGS = (
    *(f"filters/{layer}" for layer in LAYERS),
    *(f"synthesis/{layer}" for layer in LAYERS),
    "Overview",
    "activations/block1_pool",
    "activations/block2_pool",
    "predictions/val",
)


@pytest.mark.parametrize("tag", TAGS)
def test_every_epoch_writes_every_picture_to_the_folder_and_to_tensorboard(run: Path, tag: str) -> None:
    pictures = sorted(path.name for path in (run / "pictures" / tag).iterdir())
    assert pictures == ["epoch_000.png", "epoch_001.png", "epoch_002.png"]
    events = events_of(run)
    images = events.Tensors(tag)
    assert [image.step for image in images] == [0, 1, 2]
    assert images[1].tensor_proto.string_val[2] == (run / "pictures" / tag / "epoch_001.png").read_bytes()
    assert events.SummaryMetadata(tag).summary_description


def test_metrics_have_one_row_per_epoch_and_equal_names_in_csv_and_tensorboard(run: Path) -> None:
    rows, logged = rows_of(run), scalars_of(run)
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    for name in ("val/loss", "val/acc", "verdicts/useful", "verdicts/needed"):
        assert [step for step, _ in logged[name]] == [0, 1, 2]
        for row, (_, value) in zip(rows, logged[name], strict=True):
            assert float(row[name]) == pytest.approx(value, rel=1e-5)
    assert [step for step, _ in logged["train/acc"]] == [1, 2]
    assert rows[0]["train/acc"] == ""
    assert float(rows[-1]["test/acc"]) >= 0


def test_every_number_in_tensorboard_has_a_description(run: Path) -> None:
    events = events_of(run)
    tags = [tag for tag in events.Tags()["tensors"] if events.SummaryMetadata(tag).plugin_data.plugin_name == "scalars"]
    assert {"val/acc", "train/loss", "verdicts/useful"} <= set(tags)
    assert [tag for tag in tags if not events.SummaryMetadata(tag).summary_description] == []
    groups = list(dict.fromkeys(tag.split("/")[0] for tag in sorted(tags)))  # in the order of TensorBoard
    assert groups == ["train", "val", "verdicts", "when_finished"]
    assert "custom_scalars__config__" in events.Tags()["tensors"]


def test_one_start_writes_one_event_file_and_hparams_with_the_final_metric(run: Path) -> None:
    assert len(list(run.glob("events.out.tfevents.*"))) == 1
    plugins = events_of(run).PluginTagToContent("hparams")
    assert any("session_start_info" in tag for tag in plugins)
    assert all(tag in str(plugins["_hparams_/experiment"]) for tag in ("val/acc", "when_finished/test_acc"))
    assert scalars_of(run)["when_finished/test_acc"][-1][1] == pytest.approx(float(rows_of(run)[-1]["test/acc"]))


def test_best_and_last_checkpoints_are_real_files_that_load_without_executing_anything(run: Path) -> None:
    for name in ("best.ckpt", "last.ckpt"):
        path = run / "checkpoints" / name
        assert not path.is_symlink()
        about = torch.load(path, weights_only=True)["filterscope"]
        assert len(about["class_names"]) == 10
        assert about["image_size"] == 24
        assert about["config"]["model"]["in_channels"] == 3


def test_confusion_counts_every_validation_image(run: Path) -> None:
    tables = list((run / "predictions" / "per_class_val").glob("*.csv"))
    assert len(tables) == 1
    assert (run / "pictures" / "predictions" / "confusion_val").is_dir()


def test_looking_leaves_training_bit_identical(run: Path, composed: Compose, tmp_path: Path) -> None:
    train(composed(*TINY, "visuals=none"), tmp_path)
    assert_same_weights(run, tmp_path)


def test_the_number_of_workers_does_not_change_the_result(run: Path, composed: Compose, tmp_path: Path) -> None:
    train(composed(*TINY, "visuals=none", "data.num_workers=2"), tmp_path)
    assert_same_weights(run, tmp_path)


@pytest.mark.parametrize("finetune", ["full", "gradual", "linear_probe"])
def test_an_interrupted_run_resumes_to_the_same_bits(
    finetune: str, composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = (*TINY, f"finetune={finetune}", "trainer.max_epochs=3", "visuals=[activations,health,timeline]")
    if finetune == "gradual":
        overrides = (*overrides, "finetune.release_epoch=2")
    train(composed(*overrides), tmp_path / "whole")

    loss = FinetuneModule.loss

    def interrupted(self: FinetuneModule, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if self.trainer.global_step == 4:  # in the middle of the second epoch
            raise InterruptedError
        return loss(self, logits, labels)

    monkeypatch.setattr(FinetuneModule, "loss", interrupted)
    with pytest.raises(InterruptedError):
        train(composed(*overrides), tmp_path / "broken")
    monkeypatch.setattr(FinetuneModule, "loss", loss)
    train(composed(*overrides, f"resume={tmp_path / 'broken'}"), tmp_path / "broken")

    assert_same_weights(tmp_path / "whole", tmp_path / "broken")
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "broken")
    for table in ("health", "health/layers"):
        files = [tmp_path / run / table / "epoch_003.csv" for run in ("whole", "broken")]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_linear_probe_changes_nothing_but_the_head(composed: Compose, tmp_path: Path) -> None:
    train(composed(*TINY, "finetune=linear_probe", "trainer.max_epochs=0"), tmp_path / "before")
    train(composed(*TINY, "finetune=linear_probe", "visuals=filters"), tmp_path / "after")
    before, after = weights_of(tmp_path / "before"), weights_of(tmp_path / "after")
    changed = {name for name in before if name.startswith("classifier.") and not torch.equal(before[name], after[name])}
    assert changed == {"classifier.head.weight", "classifier.head.bias"}


def test_frozen_filters_are_drawn_once(composed: Compose, tmp_path: Path) -> None:
    train(composed(*TINY, "finetune=linear_probe", "visuals=filters"), tmp_path)
    drawn = sorted(path.name for path in (tmp_path / "pictures" / "filters" / "block1_conv1").iterdir())
    assert drawn == ["epoch_000.png"]


def test_zero_epochs_draw_test_and_write_a_checkpoint(composed: Compose, tmp_path: Path) -> None:
    metrics = train(composed(*TINY, "trainer.max_epochs=0", "visuals=filters"), tmp_path)
    assert metrics.keys() >= {"val/acc", "test/acc"}
    assert (tmp_path / "pictures" / "filters" / "block1_conv1" / "epoch_000.png").is_file()
    assert (tmp_path / "checkpoints" / "best.ckpt").is_file()


def test_filters_are_judged_by_the_whole_validation_pass(run: Path, composed: Compose) -> None:
    saved = checkpoint_of(run)["filterscope"]["visual_state"]
    assert saved.keys() == {"epoch", "store"}
    images = torch.cat([images for images, _ in build_data(composed(*TINY)).val_dataloader()])
    classifier = open_run(run / "checkpoints" / "last.ckpt").classifier
    outputs = activations(classifier, images, ["block1_conv1"])["block1_conv1"]
    looked_at = outputs.flatten(2)[:, :, sample_positions(*outputs.shape[2:], most=POSITIONS)]
    positive = (looked_at > 0).float().mean(dim=(0, 2))
    known = saved["store"]["health"]["block1_conv1"]
    assert known["images"] == len(images) == 30
    assert known["numbers"]["apoz"] == pytest.approx(1 - float(positive.mean()), abs=1e-4)


def test_verdicts_are_tested_by_ablation_once_at_the_end_of_training(run: Path) -> None:
    (causes,) = (run / "health" / "causes").iterdir()
    rows = rows_of(causes)
    assert [row["layers"] for row in rows] == ["all at once"]
    assert len(list((run / "health" / "natural").iterdir())) == 1


def test_a_health_metric_can_select_the_best_epoch_and_stop_training(composed: Compose, tmp_path: Path) -> None:
    watch = (
        "callbacks.checkpoint.monitor=health/drift/block1_conv1",
        "visuals.health.by_layer=true",
        "callbacks.checkpoint.mode=min",
        "callbacks=[default,early_stopping]",
        "callbacks.early_stopping.patience=2",
    )
    metrics = train(composed(*TINY, "visuals=health", "trainer.max_epochs=9", "schedule=constant", *watch), tmp_path)
    drifts = [float(row["health/drift/block1_conv1"]) for row in rows_of(tmp_path)]
    assert drifts == sorted(drifts)
    assert len(drifts) == 4  # before training, the best one, and two that are no better
    assert metrics["health/drift/block1_conv1"] == pytest.approx(drifts[1], rel=1e-5)


def test_an_unknown_monitored_metric_is_refused_before_the_first_epoch(composed: Compose, tmp_path: Path) -> None:
    cfg = composed(*TINY, "visuals=health", "callbacks.checkpoint.monitor=verdicts/usefull")
    measured = r"not measured \(did you mean verdicts/useful\?\); measured are verdicts/dead"
    with pytest.raises(UserError, match=measured):
        train(cfg, tmp_path)
    cfg = composed(*TINY, "visuals=health", "callbacks.checkpoint.monitor=health/drift/block1_conv1")
    with pytest.raises(UserError, match=r"not measured \(needs visuals.health.by_layer=true\)"):
        train(cfg, tmp_path / "layer")
    assert [row["epoch"] for row in rows_of(tmp_path)] == ["0"]


def test_early_stopping_stops(composed: Compose, tmp_path: Path) -> None:
    stopping = ("callbacks=[default,early_stopping]", "callbacks.early_stopping.patience=2")
    cfg = composed(*TINY, "visuals=none", "trainer.max_epochs=30", "optimizer.lr=0", *stopping)
    train(cfg, tmp_path)
    assert len(rows_of(tmp_path)) < 8


CHANGES: dict[str, tuple[Callable[[Path], object], str | None]] = {
    "moved": (lambda data: data.rename(data.parent / "elsewhere"), None),
    "an image more": (lambda data: copy(data / "ant" / "0.png", data / "ant" / "new.png"), r"1[0-9] \w+ images, not"),
    "an image less": (lambda data: (data / "ant" / "1.png").unlink(), r"1[0-9] \w+ images, not"),
    "another class": (lambda data: (data / "ant").rename(data / "bug"), "class 0 is 'bee', not 'ant'"),
    "another image": (lambda data: copy(data / "bee" / "1.png", data / "bee" / "0.png"), r"other \w+ images or labels"),
    "a class more": (lambda data: copytree(data / "ant", data / "fly"), "3 classes, not 2"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_resumes_with_moved_data_but_not_with_other_data(change: str, composed: Compose, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for name in ("ant", "bee"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(8):
            pixels = torch.randint(0, 256, (3, 24, 24 + number), generator=generator, dtype=torch.uint8)
            to_pil_image(pixels).save(tmp_path / "data" / name / f"{number}.png")
    tiny = [option for option in TINY if "num_" not in option]
    own = ["data=folder", "data.batch_size=8", "data.num_workers=0", "visuals=none", "trainer.max_epochs=1"]
    options = composed(*tiny, *own, f"data.root={tmp_path / 'data'}")
    train(options, tmp_path / "run")
    changing, refusal = CHANGES[change]
    changing(tmp_path / "data")
    root = "elsewhere" if change == "moved" else "data"
    more = composed(*tiny, *own, "trainer.max_epochs=2", f"data.root={tmp_path / root}", f"resume={tmp_path / 'run'}")
    if refusal is None:
        train(more, tmp_path / "run")
        assert len(rows_of(tmp_path / "run")) == 3
        return
    with pytest.raises(UserError, match=f"the data is not what .*last.ckpt was trained on: .*{refusal}") as caught:
        train(more, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert len(rows_of(tmp_path / "run")) == 2


def test_batch_norm_on_single_values_is_refused_in_words(composed: Compose, tmp_path: Path) -> None:
    options = [each for each in TINY if not each.startswith(("model", "data.batch_size"))]
    network = ["model=torchvision", "model.name=resnet18", "model.weights=null", "head=replace", "visuals=none"]
    message = r"batch norm cannot train on one value per channel \(a batch of 1 image\); .*data\.batch_size"
    with pytest.raises(UserError, match=message):
        train(composed(*options, *network, "data.batch_size=1"), tmp_path)
