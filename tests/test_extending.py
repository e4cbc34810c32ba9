"""Everything that can be added is added by a package outside of `src` and by YAML files."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from run_files import checkpoint_of
from tiny import REPOSITORY

Compose = Callable[..., dict[str, Any]]

PARTS = '''
from dataclasses import dataclass
from pathlib import Path

import torch
from pytorch_lightning import Callback
from pytorch_lightning.loggers import CSVLogger

from filterscope import register
from filterscope.analysis.health.measures import measure
from filterscope.data.datamodule import ImageDataModule
from filterscope.data.images import DataSplits, Pixels
from filterscope.training.policies import Full
from filterscope.visuals.output.outputs import Picture
from filterscope.visuals.visual import Visual


@register("data")
@dataclass(kw_only=True, eq=False, repr=False)
class Stripes(ImageDataModule):
    """Level and upright stripes."""

    period: int = 4

    def find(self):
        def draw(count, title):
            labels = torch.arange(count) % 2
            wave = (torch.arange(self.image_size) % self.period < self.period // 2).to(torch.uint8) * 255
            level = wave[None, :, None].expand(3, -1, self.image_size)
            pixels = torch.stack([level if label == 0 else level.transpose(1, 2) for label in labels])
            return Pixels(pixels=pixels.contiguous(), labels=labels, title=title)

        return DataSplits(
            location="stripes", class_names=("level", "upright"),
            train=draw(40, "train"), val=draw(20, "val"), test=draw(20, "test"),
        )


@register("visual", "first_image")
@dataclass(frozen=True, kw_only=True)
class FirstImage(Visual):
    """Show the first example."""

    needs_images = True

    def __call__(self, classifier, examples, state):
        pixels = (examples.images[0] * 255).to(torch.uint8).permute(1, 2, 0)
        return {"first_image/val": Picture(pixels=pixels.contiguous().numpy(), description="the first example")}


@register("objective")
def energy(response):
    """Return the mean square of the channel's map."""
    return response.own(response.output).pow(2).flatten(1).mean(dim=1)


@register("policy")
@dataclass(frozen=True, kw_only=True)
class Slowly(Full):
    """Train everything at a hundredth of the rate."""

    def groups(self, classifier, lr, weight_decay):
        return super().groups(classifier, lr / 100, weight_decay)


@measure(title="peak weight", summary="mean")
def peak_weight(layer):
    """The largest absolute weight of the kernel."""
    return layer.kernels.abs().flatten(1).amax(dim=1)


class OwnCSV(CSVLogger):
    """Lightning's CSV under another name."""

    def __init__(self, save_dir):
        super().__init__(save_dir, name="own_csv", version="")


class NoteEnd(Callback):
    """Write a file when training ends."""

    def __init__(self, *, text: str = "ended"):
        self.text = text

    def on_train_end(self, trainer, pl_module):
        (Path(trainer.default_root_dir) / "note.txt").write_text(self.text)


def unregistered(**_):
    Path("called").touch()
'''
CONF = {
    "data/stripes": "_target_: plugin_under_test.parts.Stripes\nimage_size: 24\nbatch_size: 10\nseed: ${seed}\n"
    "num_channels: 3\nperiod: 4\nresize_ratio: 1.0\nnum_workers: 0\n",
    "visuals/first_image": "first_image:\n  _target_: plugin_under_test.parts.FirstImage\n  every: 1\n",
    "finetune/slowly": "_target_: plugin_under_test.parts.Slowly\nlr: 0.01\n",
    "logger/own_csv": "own_csv:\n  _target_: plugin_under_test.parts.OwnCSV\n",
    "callbacks/note_end": "note_end:\n  _target_: plugin_under_test.parts.NoteEnd\n  text: the end\n",
}
TINY = (
    "model=small_cnn", "model.in_channels=3", "trainer.accelerator=cpu", "trainer.precision=32-true",
    "trainer.enable_progress_bar=false", "recipe.size=24", "recipe.steps=4",
)  # fmt: skip

Run = Callable[..., subprocess.CompletedProcess[str]]


def files(folder: Path, contents: dict[str, str]) -> None:
    for name, text in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture(scope="module")
def run_script(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run a script in a folder of its own, with a plugin installed as pip would: its files and its metadata."""
    place = tmp_path_factory.mktemp("place")
    site = tmp_path_factory.mktemp("site-packages")
    metadata = "plugin_under_test-1.0.dist-info"
    files(
        site,
        {
            "plugin_under_test/__init__.py": "",
            "plugin_under_test/parts.py": PARTS,
            **{f"plugin_under_test/conf/{name}.yaml": text for name, text in CONF.items()},
            f"{metadata}/METADATA": "Metadata-Version: 2.1\nName: plugin-under-test\nVersion: 1.0\n",
            f"{metadata}/entry_points.txt": "[filterscope.plugins]\nparts = plugin_under_test.parts\n",
        },
    )
    path = os.pathsep.join([str(site), str(REPOSITORY / "src"), os.environ.get("PYTHONPATH", "")])

    def run(script: str, *overrides: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(REPOSITORY / script), *overrides]
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        return subprocess.run(
            command, cwd=place, env=environment, capture_output=True, text=True, timeout=300, check=False
        )

    run.place = place  # type: ignore[attr-defined]
    return run


@pytest.fixture(scope="module")
def trained(run_script: Run) -> Path:
    """Return the folder of a run that uses every part of the plugin."""
    done = run_script(
        "train.py", *TINY, "data=stripes", "finetune=slowly", "visuals=[first_image,health,synthesis]",
        "visuals.health.by_layer=true", "recipe.objective=energy", "logger=[tensorboard,own_csv]",
        "callbacks=[default,note_end]", "trainer.max_epochs=1", "+trainer.limit_predict_batches=1", "hydra.run.dir=run",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return run_script.place / "run"  # type: ignore[attr-defined, no-any-return]


def test_help_lists_the_choices_of_a_plugin_without_importing_it(run_script: Run) -> None:
    shown = run_script("train.py", "--help").stdout
    assert (
        "data: animals, csv, fashion_mnist, flowers, folder, mnist, none, shards, stripes, synthetic_flowers" in shown
    )
    assert ", slowly" in shown


def test_a_data_set_a_policy_and_an_objective_take_part_in_a_run(trained: Path) -> None:
    config = checkpoint_of(trained, "best")["filterscope"]["config"]
    assert config["data"]["_target_"].endswith("Stripes")
    assert config["finetune"]["_target_"].endswith("Slowly")
    assert len(list((trained / "pictures" / "synthesis").rglob("epoch_001.png"))) == 2


def test_a_visual_draws_into_tensorboard(trained: Path) -> None:
    events = EventAccumulator(str(trained)).Reload()
    assert "first_image/val" in events.Tags()["tensors"]
    assert (trained / "pictures" / "first_image" / "val" / "epoch_001.png").is_file()


def test_a_measure_is_in_the_metrics_and_in_the_table(trained: Path) -> None:
    assert "health/peak_weight/block1_conv1" in (trained / "metrics.csv").read_text()
    assert "peak_weight" in next((trained / "health").glob("*.csv")).read_text()


def test_a_logger_and_a_callback_take_part_in_a_run(trained: Path) -> None:
    assert "val/acc" in (trained / "own_csv" / "metrics.csv").read_text()
    assert (trained / "note.txt").read_text() == "the end"


def test_a_run_with_a_plugin_is_resumed(trained: Path, run_script: Run) -> None:
    done = run_script("train.py", "resume=run", "trainer.max_epochs=2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len((trained / "metrics.csv").read_text().splitlines()) == 4


def test_a_checkpoint_is_read_back_with_more_images_and_the_measure_in_the_gallery(
    trained: Path, run_script: Run
) -> None:
    shown = run_script(
        "visualize.py", f"ckpt={trained}", "visuals=[first_image,gallery]", "num_examples=18", "hydra.run.dir=shown",
        "recipe.size=24", "recipe.steps=4",
    )  # fmt: skip
    assert shown.returncode == 0, shown.stdout + shown.stderr
    place = run_script.place / "shown"  # type: ignore[attr-defined]
    assert (place / "pictures" / "first_image" / "val.png").is_file()
    assert any("peak weight" in page.read_text() for page in (place / "gallery").rglob("*.html"))


@pytest.mark.parametrize("group", ["model", "head"])
def test_a_checkpoint_that_names_an_unregistered_function_of_a_plugin_is_refused(
    group: str, trained: Path, run_script: Run
) -> None:
    content = checkpoint_of(trained, "best")
    content["filterscope"]["config"][group] = {"_target_": "plugin_under_test.parts.unregistered"}
    place = run_script.place  # type: ignore[attr-defined]
    torch.save(content, place / "hostile.ckpt")
    done = run_script("visualize.py", "ckpt=hostile.ckpt", "visuals=filters")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "plugin_under_test.parts.unregistered' is not something filterscope builds from a file" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert not (place / "called").exists()


def test_a_scheduler_a_callback_and_a_logger_need_one_yaml_and_a_trainer_option_none(
    run_script: Run, tmp_path: Path
) -> None:
    files(
        tmp_path,
        {
            "conf/schedule/halve.yaml": "_target_: torch.optim.lr_scheduler.StepLR\n_partial_: true\n"
            "step_size: 2\ngamma: 0.5\n",
            "conf/callbacks/timer.yaml": "timer:\n  _target_: pytorch_lightning.callbacks.Timer\n  duration: null\n",
            "conf/logger/two.yaml": "two:\n  _target_: pytorch_lightning.loggers.CSVLogger\n  name: two\n"
            "  version: one\n",
        },
    )
    done = run_script(
        "train.py", "--config-dir", str(tmp_path / "conf"), *TINY, "data=stripes", "schedule=halve", "callbacks=timer",
        "logger=two", "visuals=none", "trainer.max_epochs=1", "trainer.log_every_n_steps=2",
        "+trainer.detect_anomaly=true", "callbacks.preemption.every_minutes=null", f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "train/loss_step" in (tmp_path / "run" / "two" / "one" / "metrics.csv").read_text()
    assert not list((tmp_path / "run").glob("events*"))
    more = (f"resume={tmp_path / 'run'}", "trainer.max_epochs=2")
    assert "is not something filterscope builds" in run_script("train.py", *more).stderr
    done = run_script("train.py", "--config-dir", str(tmp_path / "conf"), *more)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("model", "name"), [("torchvision", "squeezenet1_1"), ("torchvision", "mobilenet_v2"), ("timm", "resnet10t")]
)
def test_a_model_of_torchvision_or_timm_needs_no_file(model: str, name: str, composed: Compose) -> None:
    from filterscope.config.factory import build_published

    if model == "timm":
        pytest.importorskip("timm")
    overrides = (f"model={model}", f"model.name={name}", "model.weights=null", "data.image_size=64")
    classifier = build_published(composed(*overrides, config="visualize"))
    assert classifier.backbone.name == name
    assert classifier(torch.rand(1, 3, 64, 64)).shape == (1, 1000)
