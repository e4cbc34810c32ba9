"""Every kind of wrong input ends in a `UserError`, which the scripts report in one line."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning.loggers.mlflow
import torch
from lightning_utilities.core.imports import RequirementCache
from PIL import Image
from train import train
from visualize import visualize

from filterscope.config.options import check_config, check_paths
from filterscope.errors import UserError
from run_files import rows_of
from tiny import TINY

Compose = Callable[..., dict[str, Any]]


def tiny(*overrides: str) -> list[str]:
    """Return the tiny run's overrides, without those that are given."""
    given = {override.split("=")[0] for override in overrides}
    kept = [override for override in TINY if override.split("=")[0] not in given]
    if "data" in given:
        kept = [override for override in kept if not override.startswith("data.num")]
    if "model" in given:
        kept = [override for override in kept if not override.startswith("model.")]
    return [*kept, *overrides]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("+optimizer.rl=1",), r"optimizer has no option 'rl'; it has .*lr"),
        (("data=folder", "data.root=nowhere"), "nowhere"),
        (("data.batch_size=many",), r"data\.batch_size='many': .*integer"),
        (("data.batch_size=0",), r"data\.batch_size=0: must be an integer of at least 1"),
        (("data.exclude=[tulip]",), "tulip"),
        (("data.image_size=16", "model=alexnet_scratch"), r"16×16.*alexnet.*63"),
        (("model.in_channels=2",), r"num_channels=2: must be 1 or 3"),
        (("model=torchvision", "model.name=alexnett", "model.weights=null"), "alexnett.*alexnet"),
        (("trainer.accelerator=gpu",), r"trainer\.accelerator='gpu': No supported gpu backend found"),
        (("trainer.accelerator=abacus",), r"trainer\.accelerator='abacus': .*invalid accelerator"),
        (("trainer.precision=3",), r"trainer\.precision=3: must be auto, 32-true, bf16-mixed or 16-mixed"),
        (("trainer.precision=16-true",), r"trainer\.precision='16-true': must be"),
        (("optimizer.lr=fast",), r"optimizer\.lr='fast': .*number"),
        (("optimizer.betas=[2,1]",), r"optimizer: Invalid beta parameter"),
        (("label_smoothing=2",), r"label_smoothing=2: must be a number of at least 0 and at most 1"),
        (("num_examples=-1",), r"num_examples=-1: must be an integer of at least 0"),
        (("num_examples=many",), r"num_examples='many': must be an integer"),
        (("callbacks.checkpoint.mode=best",), r"callbacks\.checkpoint\.mode='best': must be max or min"),
        (
            ("callbacks=early_stopping", "callbacks.early_stopping.mode=best"),
            r"callbacks\.early_stopping: .*mode.*best",
        ),
        (
            ("callbacks.preemption.every_minutes=-1",),
            r"callbacks\.preemption\.every_minutes=-1: must be a number of at least 0 or null",
        ),
        (
            ("trainer.limit_train_batches=0",),
            r"trainer\.limit_train_batches=0: must be an integer of at least 1, a number above 0",
        ),
        (("trainer.limit_train_batches=2.5",), r"limit_train_batches"),
        (("trainer.accumulate_grad_batches=0",), r"trainer\.accumulate_grad_batches=0: must be an integer"),
        (("trainer.gradient_clip_val=high",), r"trainer\.gradient_clip_val='high': must be a number"),
        (("trainer.devices=0",), r"trainer\.devices=0"),
        (("trainer.devices=[0,1]",), r"trainer\.devices=\[0, 1\]"),
        (("trainer.num_nodes=0",), r"trainer\.num_nodes=0: must be an integer of at least 1"),
        (("trainer.strategy=magic",), "invalid strategy name: `strategy='magic'`"),
        (("trainer.max_epochs=some",), r"trainer\.max_epochs='some': must be an integer of at least 0"),
        (("trainer.max_epochs=null",), r"trainer\.max_epochs=null: must be an integer"),
        (("trainer.deterministic=often",), r"trainer\.deterministic='often': must be true, false or warn"),
        (("+trainer.log_every_n_step=5",), r"no option 'log_every_n_step' \(did you mean log_every_n_steps\?\)"),
        (("+trainer.logger=false",), r"trainer\.logger cannot be set: logger=\[tensorboard,…\] chooses it"),
        (("+trainer.rings=1",), r"trainer has no option 'rings'; it has .*max_epochs"),
        (("seed=-1",), r"seed=-1: must be an integer of at least 0"),
        (("seed=true",), r"seed=true: must be an integer"),
        (("data.image_size=0",), r"data\.image_size=0: must be an integer of at least 1"),
        (("data.num_train=5",), r"data\.num_train=5: must be an integer of at least 10"),
        (("data.num_workers=-1",), r"data\.num_workers=-1: must be an integer of at least 0"),
        (("data.on_corrupt=ignore",), r"data\.on_corrupt='ignore': must be error or skip"),
        (("data.resize_ratio=0.5",), r"data\.resize_ratio=0\.5: must be a number of at least 1"),
        (("data=folder", "data.root=nowhere", "data.val_fraction=2"), r"data\.val_fraction=2: .* below 1"),
        (("data.batch_size=null",), r"data\.batch_size=null: .*integer"),
        (("schedule.warmup=5",), r"schedule\.warmup=5: must be a number of at least 0 and at most 1"),
        (("finetune=gradual", "finetune.release_epoch=-1"), r"finetune\.release_epoch=-1: must be an integer"),
        (("visuals.filters.every=-1",), r"visuals\.filters\.every=-1: must be an integer of at least 0"),
        (("visuals.filters.channels=red",), r"visuals\.filters\.channels='red': .*list"),
        (
            ("finetune.backbone_lr_factor=-1",),
            r"finetune\.backbone_lr_factor=-1: must be a number of at least 0 or null",
        ),
        (("optimizer.lr=-1",), r"optimizer\.lr=-1: must be a number of at least 0"),
        (("optimizer.lr=inf",), r"optimizer\.lr=inf: must be a number of at least 0, and finite"),
        (("schedule=step", "schedule.interval=null"), r"schedule\.interval=null: must be step or epoch"),
        (("schedule=step", "schedule.step_size=0"), "schedule: integer modulo by zero"),
        (("visuals=figures", "visuals.figures.formats=[tiff]"), "must be a non-empty list of png, pdf or svg"),
        (("data=shards", "data.root=nowhere"), "holds no shards that can be read: No such file or directory"),
        (("recipe.steps=0",), r"recipe\.steps=0.* at least 1"),
        (("model.dropout=2",), r"model\.dropout=2: must be a number of at least 0 and below 1"),
        (("model.mean=[1,2]",), r"model\.mean=\[1\.0, 2\.0\]: must be 3 finite numbers"),
        (("model.mean=[0,0,0]", "model.std=[0,1,1]"), r"model\.std=.*must be a list of numbers above 0 or null"),
        (("model=torchvision",), r"model\.name must be given: model\.name=resnet50"),
        (("model.weights=imagenet",), "small_cnn has no published weights"),
        (("trainer.max_epochs=-3",), "max_epochs"),
        (("visuals.filters.layers=[block7_conv1]",), r"unknown layer 'block7_conv1'.*block1_conv1"),
        (("visuals.filters.channels=[99]",), "channel 99.*0 to 9"),
        (("visuals.activations.layers=[relu]",), "unknown layer 'relu'"),
        (("head=keep", "model.num_classes=7"), "head=keep.*7.*10"),
        (("callbacks.checkpoint.monitor=val/f1",), "val/f1.*val/acc"),
        (("recipe.objective=beauty",), "beauty.*channel"),
        (("recipe.objective=chanel",), r"unknown objective 'chanel' \(did you mean channel\?\)"),
        (("+optimizer.weight_deccay=1",), r"no option 'weight_deccay' \(did you mean weight_decay\?\)"),
        (("callbacks.checkpoint.monitor=val/ac",), r"'val/ac' is not measured \(did you mean val/acc\?\)"),
        (("export=onxx",), "export='onxx'.*state_dict"),
        (("finetune.release_epoch=2", "finetune=full"), "release_epoch"),
        (("data._target_=torch.nn.Linear",), r"data\._target_='torch\.nn\.Linear' builds no .*ImageDataModule"),
        (("data._target_=filterscope.data.folder.Nothing",), r"data\._target_=.* cannot be imported: .*No module"),
        (("data._target_=os",), r"data\._target_='os' builds no"),
        (("data._target_=null",), "data=.*must be options with a _target_"),
        (("head._target_=builtins.print",), r"head\._target_='builtins\.print' has other parameters"),
        (("head._target_=filterscope.training.schedules.cosine",), r"head\._target_=.* builds no .*Classifier"),
        (("head._target_=filterscope.models.heads.last_layer",), r"head\._target_=.* has other parameters"),
        (("head._partial_=false",), r"head\._partial_=false: must be true"),
        (("schedule._target_=builtins.dict",), r"schedule\._target_='builtins\.dict' builds no .*LRScheduler"),
        (("schedule._target_=torch.relu",), r"schedule\._target_='torch\.relu' cannot be called: no signature"),
        (("optimizer._target_=torch.optim.Nothing",), r"optimizer\._target_='torch\.optim\.Nothing' cannot be"),
        (("finetune._target_=builtins.dict",), r"finetune\._target_=.* builds no .*Policy"),
        (("mix._target_=builtins.dict",), r"mix\._target_=.* builds no .*Transform"),
        (("trainer._target_=builtins.dict",), r"trainer\._target_=.* builds no .*Trainer"),
        (("callbacks.metrics._target_=builtins.dict",), r"callbacks\.metrics\._target_=.* builds no .*Callback"),
        (("+callbacks.mine=3",), r"callbacks\.mine=3: must be options with a _target_"),
        (("logger.tensorboard._target_=builtins.dict",), r"logger\.tensorboard\._target_=.* builds no .*Logger"),
        (("visuals.filters._target_=torch.nn.Linear",), r"visuals\.filters\._target_=.* builds no .*Visual"),
        (("trainer.check_val_every_n_epoch=0",), r"check_val_every_n_epoch=0: must be an integer of at least 1"),
        (("model.mean=[nan,0,0]",), r"model\.mean"),
        (("model.std=[.inf,1,1]",), r"model\.std"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_input_to_train(overrides: tuple[str, ...], message: str, composed: Compose, tmp_path: Path) -> None:
    from hydra.errors import ConfigCompositionException

    with pytest.raises((UserError, ConfigCompositionException), match=message) as caught:
        train(composed(*tiny(*overrides)), tmp_path)
    assert isinstance(caught.value, ConfigCompositionException) or "\n" not in str(caught.value)


def test_training_without_data_is_refused(composed: Compose, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no data to train on"):
        train(composed("data=none", "visuals=none"), tmp_path)


def test_a_logger_whose_package_is_missing_names_the_extra(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pytorch_lightning.loggers.mlflow, "_MLFLOW_AVAILABLE", RequirementCache("no_such_package"))
    with pytest.raises(UserError, match=r'logger\.mlflow: .*pip install "filterscope\[mlflow\]"') as caught:
        train(composed(*tiny("visuals=none", "logger=mlflow")), tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("ckpt=nowhere",), "no checkpoint at nowhere"),
        (("model=small_cnn", "data.image_size=28", "visuals=activations"), "need images"),
        (("model=small_cnn", "model.weights=imagenet"), "no published weights"),
        (("model=alexnet", "model.weights=null", "data.image_size=20", "visuals=filters"), r"20×20.*63"),
        (("model=small_cnn", "model._target_=builtins.dict"), r"model\._target_=.* builds no .*Backbone"),
        (("model=small_cnn", "model._target_=nothing.at_all"), r"model\._target_=.* cannot be imported"),
        (
            ("model=small_cnn", "data=mnist", "data._target_=torch.nn.Linear"),
            r"data\._target_=.* builds no .*ImageDataModule",
        ),
        (
            ("model=small_cnn", "visuals=filters", "visuals.filters._target_=builtins.dict"),
            r"filters\._target_=.* builds no .*Visual",
        ),
        (
            ("model=small_cnn", "data.image_size=32", "visuals=synthesis", "recipe.size=24"),
            "none of the chosen visuals can be drawn",
        ),
        (("model=small_cnn", "model.mean=[.nan]"), r"model\.mean.*numbers"),
        (("model=small_cnn", "model.std=[.inf]"), r"model\.std"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_input_to_visualize(overrides: tuple[str, ...], message: str, composed: Compose, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        visualize(composed(*overrides, config="visualize"), tmp_path)


@pytest.mark.parametrize(
    "option",
    [
        {"ckpt": ""},
        {"ckpt": 1},
        {"ckpt": ["a"]},
        {"runs": []},
        {"open": "abc"},
        {"feature_cache": True},
        {"visuals": ["x"]},
        {"callbacks": None},
    ],
)
def test_an_option_of_another_kind_is_refused_before_anything_is_drawn(option: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"^{next(iter(option))}=.*: (must be|choose options of the group)"):
        check_config(option)


def test_a_folder_of_too_many_files_is_not_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("filterscope.config.options._MOST_FILES", 3)
    for number in range(4):
        (tmp_path / f"{number}.jpg").touch()
    with pytest.raises(UserError, match="more than 3 files lie there"):
        check_paths({"images": str(tmp_path)})


def test_missing_images_are_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "empty").mkdir()
    wrong = ["nowhere.jpg", "*.jpg", str(tmp_path / "pipe.jpg"), str(tmp_path / "empty"), "https://a.org/b.jpg", "~x/y"]
    for images in [*wrong, ["nowhere.jpg"], [""], [3]]:
        with pytest.raises(UserError, match="no image at"):
            check_paths({"images": images})


def test_images_are_files_folders_and_patterns(tmp_path: Path) -> None:
    names = ["a.jpg", "my photo, 1.PNG", "[x].jpg", "below/b.webp"]
    for name in (*names, "notes.txt", "below/labels.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    expected = {
        str(tmp_path): sorted(names),
        f"{tmp_path}/*.jpg": ["[x].jpg", "a.jpg"],
        f"{tmp_path}/[x].jpg": ["[x].jpg"],
        f"{tmp_path}/my photo, 1.PNG": ["my photo, 1.PNG"],
        f"{tmp_path}/**/b.*": ["below/b.webp"],
    }
    for images, found in expected.items():
        for given in (images, [images]):
            cfg = {"images": given}
            check_paths(cfg)
            assert cfg["images"] == [str(tmp_path / name) for name in found], images


def test_a_file_that_is_not_an_image_is_named(composed: Compose, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("not an image")
    cfg = composed(
        "model=small_cnn", "data.image_size=28", "visuals=activations", f"images=[{tmp_path}/text.jpg]",
        config="visualize",
    )  # fmt: skip
    with pytest.raises(UserError, match=r"text\.jpg cannot be read as an image"):
        visualize(cfg, tmp_path / "out")


def test_weights_of_another_network_are_named(composed: Compose, tmp_path: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "vgg.pth")
    cfg = composed(*tiny("model=alexnet", f"model.weights={tmp_path}/vgg.pth", "data.image_size=64", "head=linear"))
    with pytest.raises(UserError, match=r"vgg\.pth.*alexnet.*features\.0\.weight"):
        train(cfg, tmp_path / "out")


def photographs(folder: Path, *classes: str, count: int = 8) -> str:
    """Save small images in class folders and return the root folder."""
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.new("RGB", (30, 30), (number, 10, 90)).save(folder / name / f"{number}.png")
    return str(folder)


def broken(folder: Path, kind: str) -> tuple[str, ...]:
    """Write data that cannot be trained on and return the overrides that select it."""
    photographs(folder / "good", "a", "b")
    good = ("data=folder", f"data.root={folder}/good")
    if kind == "no such folder":
        return ("data=folder", f"data.root={folder}/nowhere")
    if kind == "a file for a folder":
        return ("data=folder", f"data.root={folder}/good/a/0.png")
    if kind == "one class":
        return ("data=folder", f"data.root={photographs(folder / 'one', 'a')}")
    if kind == "nothing in it":
        (folder / "empty").mkdir()
        return ("data=folder", f"data.root={folder}/empty")
    if kind == "a class without images":
        (folder / "good" / "c").mkdir()
    elif kind == "a text for an image":
        (folder / "good" / "b" / "0.png").write_text("no image")
    elif kind == "names that are no JSON":
        (folder / "good" / "cat_to_name.json").write_text("{")
    elif kind == "too much held out":
        return (*good, "data.val_fraction=0.9")
    elif kind == "no validation":
        return (*good, "data.val_fraction=0")
    elif kind == "all classes but one left out":
        return (*good, "data.exclude=[a]")
    elif kind == "an impossible crop":
        return (*good, "data.augment.crop_area=[2,1]")
    elif kind.startswith("CSV"):
        text = {"CSV of other columns": "a,b\n1,2\n", "CSV of missing files": "filename,label\nnowhere.png,a\n"}
        (folder / "labels.csv").write_bytes(text.get(kind, "").encode() or (b"\xff\xfe" if "bytes" in kind else b""))
        return ("data=csv", f"data.root={folder}", *(("data.csv=other.csv",) if "not there" in kind else ()))
    elif kind in ("mnist", "flowers", "animals"):
        return (f"data={kind}", f"data.root={folder}", "data.download=false")
    return good


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no such folder", "nowhere: there is no such folder"),
        ("a file for a folder", r"0\.png: there is no such folder"),
        ("one class", "at least 2 are needed"),
        ("nothing in it", "holds no class folders"),
        ("a class without images", "class 'c' has no training images"),
        ("a text for an image", r"b/0\.png cannot be read as an image: not a known image format"),
        ("names that are no JSON", "is not readable as JSON"),
        ("too much held out", "their sum must stay below 1"),
        ("no validation", r"data\.val_fraction is 0"),
        ("all classes but one left out", "1 class.es. to tell apart; at least 2"),
        ("an impossible crop", r"data\.augment\.crop_area=\[2\.0, 1\.0\]"),
        ("CSV of other columns", "has no column 'filename'; its columns are a, b"),
        ("CSV of missing files", "1 of them are not there"),
        ("CSV of bytes", "has no rows"),
        ("CSV of nothing", "has no rows"),
        ("CSV that is not there", "there is no CSV file at other"),
        ("mnist", r"holds no MNIST .*data\.download=true"),
        ("flowers", r"holds no Flowers 102 .*data\.download=true"),
        ("animals", "holds no animals10/raw-img"),
    ],
)
def test_unusable_data_is_an_error_in_one_line(kind: str, message: str, composed: Compose, tmp_path: Path) -> None:
    before = broken(tmp_path / "data", kind)
    old = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}
    with pytest.raises(UserError, match=message) as caught:
        train(composed(*tiny("data.image_size=24", *before)), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")} == old


@pytest.mark.parametrize(
    "what", ["text", "a table", "a network", "other shapes", "a list of numbers", "another network", "a folder"]
)
def test_unusable_weights_are_an_error_in_one_line(what: str, composed: Compose, tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    if what in ("text", "a table"):
        file.write_text("no weights" if what == "text" else "epoch,val/acc\n0,0.1\n")
    elif what == "a folder":
        file.mkdir()
    else:
        content: dict[str, Any] = {
            "a network": torch.nn.Linear(2, 2), "other shapes": {"conv1.weight": torch.zeros(3, 3, 3, 3)},
            "a list of numbers": [1, 2], "another network": {"other": torch.zeros(2)},
        }  # fmt: skip
        torch.save(content[what], file)
    with pytest.raises(UserError, match=r"weights\.pth") as caught:
        train(composed(*tiny(f"model.weights={file}")), tmp_path / "run")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [("text.ckpt", b"no checkpoint"), ("empty.ckpt", b""), ("zip.ckpt", b"PK\x05\x06" + bytes(18)), ("folder", None)],
)
def test_a_file_that_is_no_checkpoint_is_an_error_in_one_line(
    name: str, content: bytes | None, composed: Compose, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=name):
        visualize(composed(f"ckpt={path}", config="visualize"), tmp_path / "out")


def test_damaged_images_that_are_left_out_are_counted_in_the_metrics(composed: Compose, tmp_path: Path) -> None:
    folder = photographs(tmp_path / "data", "a", "b", count=20)
    for number in (3, 4):
        (tmp_path / "data" / "a" / f"{number}.png").write_bytes(b"half of it")
    options = ("data=folder", f"data.root={folder}", "data.on_corrupt=skip", "data.num_workers=0", "visuals=none")
    train(composed(*tiny("data.image_size=24", "trainer.max_epochs=0", *options)), tmp_path / "run")
    assert rows_of(tmp_path / "run" / "metrics.csv")[0]["data/skipped"] == "2"
