import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from train import train
from visualize import visualize

import filterscope
from filterscope.cli.visualize import visualize_runs
from filterscope.config import from_checkpoint
from filterscope.config.from_checkpoint import find_checkpoint, open_run
from filterscope.errors import UserError
from run_files import checkpoint_of, weights_of
from tiny import TINY

Compose = Callable[..., dict[str, Any]]
SMALL = ("recipe.size=24", "recipe.steps=4")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run on image files that are deleted afterwards."""
    import hydra

    from filterscope.cli.main import resolve_config
    from tiny import REPOSITORY

    data = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("valid", 6)):
        for name in ("ants", "bees"):
            (data / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 255, (30, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(data / split / name / f"{i}.png")
    tiny = [override for override in TINY if not override.startswith("data.num")]
    with hydra.initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        cfg = resolve_config(hydra.compose("train", [*tiny, "data=folder", f"data.root={data}", "visuals=synthesis"]))
    folder = tmp_path_factory.mktemp("run")
    train(cfg, folder)
    shutil.rmtree(data)
    return folder


def test_a_moved_checkpoint_is_drawn_when_the_data_is_gone(run: Path, composed: Compose, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere.ckpt"
    shutil.copy(run / "checkpoints" / "best.ckpt", moved)
    tags = visualize(composed(f"ckpt={moved}", *SMALL, config="visualize"), tmp_path / "out")
    assert {"filters/block1_conv1", "synthesis/block2_conv1", "activations/block1_pool", "predictions/val"} <= set(tags)
    for tag in tags:
        if tag.startswith(("health", "verdicts/")):
            continue  # numbers and tables
        assert (tmp_path / "out" / "pictures" / f"{tag}.png").is_file()


def test_the_published_network_stands_beside_a_run_that_started_from_its_weights(
    composed: Compose, tmp_path: Path
) -> None:
    started = tmp_path / "start.pt"
    torch.save({f"conv{i}.{name}": value for i, layer in ((1, (10, 3)), (2, (20, 10))) for name, value in (
        ("weight", torch.randn(*layer, 3, 3)), ("bias", torch.zeros(layer[0])))}, started)  # fmt: skip
    options = [option for option in TINY if not option.startswith("trainer.max_epochs")]
    train(composed(*options, f"model.weights={started}", "trainer.max_epochs=1", "visuals=none"), tmp_path / "run")
    chosen = ["model=small_cnn", "model.in_channels=3", f"model.weights={started}", "visuals=gallery"]
    small = ["visuals.gallery.quality=draft", "visuals.gallery.health.draws=19", "visuals.gallery.images=30"]
    asked = composed(f"runs=[null,{tmp_path / 'run'}]", *chosen, *small, "recipe.steps=1", config="visualize")
    visualize_runs(asked, tmp_path / "out")
    layer = json.loads((tmp_path / "out" / "gallery" / "gallery.json").read_text())["layers"][0]
    assert [number for number, _ in layer["partners"][1]] == list(range(10))


def test_more_images_come_from_the_data_that_the_run_was_trained_on(composed: Compose, tmp_path: Path) -> None:
    grey = [option for option in TINY if not option.startswith("model.in_channels")]
    train(composed(*grey, "visuals=filters", "trainer.max_epochs=1", "num_examples=3"), tmp_path / "run")
    given = composed(f"ckpt={tmp_path / 'run'}", "data=synthetic_flowers", "data.num_val=20", config="visualize")
    assert from_checkpoint.load_subject(given).examples.images.shape[1:] == (1, 24, 24)  # as the network takes them
    cfg = composed(f"ckpt={tmp_path / 'run'}", "visuals=health_causes", config="visualize")
    subject = from_checkpoint.load_subject(cfg)
    assert len(subject.examples) == 3
    assert len(subject.examples.sample(25)) == 25
    visualize(cfg, tmp_path / "out")
    assert (tmp_path / "out" / "health" / "causes.csv").is_file()


def test_more_images_than_a_moved_checkpoint_holds_are_an_error_in_one_line(run: Path, composed: Compose) -> None:
    subject = from_checkpoint.load_subject(composed(f"ckpt={run}", config="visualize"))
    with pytest.raises(UserError, match="no"):
        subject.examples.sample(1000)


def test_data_given_on_the_command_line_replaces_the_images_of_the_checkpoint(run: Path, composed: Compose) -> None:
    cfg = composed(f"ckpt={run}", "data=synthetic_flowers", "num_examples=5", "data.num_val=20", config="visualize")
    examples = from_checkpoint.load_subject(cfg).examples
    assert len(examples) == 5
    assert examples.labels is None  # ants and bees are not classes of the network
    assert examples.images.shape[-1] == 24  # the network's own size


def test_activations_of_images_given_by_path(run: Path, composed: Compose, tmp_path: Path) -> None:
    Image.new("RGB", (40, 60), "red").save(tmp_path / "photo.jpg")
    cfg = composed(
        f"ckpt={run}",
        "visuals=activations",
        f"images=[{tmp_path / 'photo.jpg'}]",
        "visuals.activations.layers=[block2_conv1]",
        config="visualize",
    )
    assert visualize(cfg, tmp_path / "out") == ["activations/block2_conv1"]


def test_load_returns_the_trained_classifier(run: Path) -> None:
    classifier = filterscope.load(run)
    weights = weights_of(run, "best")
    for name, tensor in classifier.state_dict().items():
        assert torch.equal(tensor, weights[f"classifier.{name}"])
    assert classifier.class_names == ("ants", "bees")
    assert classifier(torch.rand(3, 3, 24, 24)).shape == (3, 2)
    assert not classifier.training


def test_exported_weights_load_into_the_plain_network(run: Path, composed: Compose, tmp_path: Path) -> None:
    visualize(composed(f"ckpt={run}", "visuals=filters", "export=state_dict", config="visualize"), tmp_path)
    exported = torch.load(tmp_path / "small_cnn.pt", weights_only=True)
    from filterscope.models.backbone import SmallCNN

    network = SmallCNN(in_channels=3, image_size=24, num_classes=2).eval()
    network.load_state_dict(exported)
    images = torch.rand(2, 3, 24, 24)
    assert torch.equal(network(images), filterscope.load(run)(images))


def test_a_network_is_drawn_without_any_training(composed: Compose, tmp_path: Path) -> None:
    cfg = composed("model=alexnet", "model.weights=null", "visuals=filters", config="visualize")
    assert len(visualize(cfg, tmp_path)) == 5


def test_weights_of_the_convolutional_part_are_enough_to_draw_it(composed: Compose, tmp_path: Path) -> None:
    import torchvision

    features = {k: v for k, v in torchvision.models.alexnet().state_dict().items() if k.startswith("features.")}
    torch.save(features, tmp_path / "features.pth")
    cfg = composed(f"model.weights={tmp_path / 'features.pth'}", "visuals=filters", config="visualize")
    assert len(visualize(cfg, tmp_path / "out")) == 5


def test_latest_means_the_newest_run(run: Path, tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        shutil.copy(run / "checkpoints" / "best.ckpt", tmp_path / name / "checkpoints" / "best.ckpt")
    import os

    os.utime(tmp_path / "old" / "checkpoints" / "best.ckpt", (1, 1))
    assert find_checkpoint("latest", tmp_path) == tmp_path / "new" / "checkpoints" / "best.ckpt"


@pytest.mark.parametrize("ckpt", ["nowhere", "nowhere.ckpt"])
def test_a_missing_checkpoint_is_an_error_in_one_line(ckpt: str) -> None:
    with pytest.raises(UserError, match=r"no checkpoint at nowhere"):
        find_checkpoint(ckpt)


def test_a_truncated_checkpoint_is_an_error_in_one_line(run: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes((run / "checkpoints" / "best.ckpt").read_bytes()[:5000])
    with pytest.raises(UserError, match="not a readable checkpoint"):
        open_run(broken)


def test_a_checkpoint_of_another_program_is_an_error_in_one_line(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    with pytest.raises(UserError, match="not a checkpoint of filterscope"):
        open_run(tmp_path / "foreign.ckpt")


def test_a_checkpoint_with_another_number_of_classes_is_an_error_in_one_line(run: Path, tmp_path: Path) -> None:
    content = checkpoint_of(run, "best")
    content["filterscope"]["class_names"] = ["ants", "bees", "wasps"]
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match=r"weights are not those of its config.*head\.weight"):
        open_run(tmp_path / "other.ckpt")


@pytest.mark.parametrize("target", ["os.system", "torch.load", "builtins.open", "subprocess.run"])
def test_a_stored_config_cannot_choose_the_function_that_is_called(run: Path, tmp_path: Path, target: str) -> None:
    content = checkpoint_of(run, "best")
    content["filterscope"]["config"]["model"] = {"_target_": target, "command": f"touch {tmp_path}/executed"}
    torch.save(content, tmp_path / "hostile.ckpt")
    with pytest.raises(UserError, match="not something filterscope builds from a file"):
        open_run(tmp_path / "hostile.ckpt")
    assert not (tmp_path / "executed").exists()
