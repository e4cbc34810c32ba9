"""`LogVisuals` in the training of somebody else: any LightningModule, both Lightnings, other loggers."""

import importlib
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from filterscope import LogVisuals
from filterscope.errors import UserError
from filterscope.visuals.filters import Filters
from filterscope.visuals.visual import Visual, VisualState

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.rand(12, 3, 24, 24, generator=GENERATOR)
LABELS = torch.arange(12) % 3


class Stem(nn.Module):
    """Layers below layers, as in networks that are no chain."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)

    def forward(self, images: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(images)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = Stem()
        self.conv = nn.Conv2d(6, 8, 3)
        self.out = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.out(F.relu(self.conv(self.stem(images))).mean((2, 3)))


def module_of(lightning: Any) -> Any:
    class Theirs(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def about(self) -> str:  # an attribute that filterscope's own modules have, with another meaning
            return "theirs"

        def training_step(self, batch: Any, _index: int) -> Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch: Any, _index: int) -> None:
            self.log("val_loss", F.cross_entropy(self.net(batch[0]), batch[1]))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    torch.manual_seed(0)
    return Theirs()


def fit(
    lightning: Any, folder: Path, callbacks: list, logger: Any = False, labels: Tensor = LABELS, **options: Any
) -> dict[str, Tensor]:
    loader = DataLoader(TensorDataset(IMAGES, labels), batch_size=4)
    module = module_of(lightning)
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        callbacks=callbacks,
        logger=logger,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **options,
    )
    trainer.fit(module, loader, loader)
    trainer.save_checkpoint(folder / "some.ckpt")
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("name", ["pytorch_lightning", "lightning.pytorch"])
def test_pictures_of_every_epoch_come_from_any_training_and_change_nothing_in_it(name: str, tmp_path: Path) -> None:
    lightning = importlib.import_module(name)
    looks = LogVisuals(["filters", "activations", "health"], examples=IMAGES, folder=tmp_path)
    assert isinstance(looks, lightning.Callback)
    logger = lightning.loggers.TensorBoardLogger(tmp_path / "events")
    watched = fit(lightning, tmp_path, [looks], logger)
    for tag in ("filters/stem.conv", "filters/conv", "activations/stem"):
        drawn = sorted(path.name for path in (tmp_path / "pictures" / tag).iterdir())
        assert drawn == [f"epoch_{epoch:03d}.png" for epoch in range(3)]
    assert list((tmp_path / "events").rglob("events.out.tfevents.*"))
    assert (tmp_path / "health" / "epoch_002.csv").is_file()
    alone = fit(lightning, tmp_path, [])
    assert all(torch.equal(tensor, alone[key]) for key, tensor in watched.items())


def test_what_was_remembered_lies_in_their_checkpoint(tmp_path: Path) -> None:
    import pytorch_lightning as pl

    fit(pl, tmp_path, [LogVisuals(["history"], examples=IMAGES[:2])])
    content = torch.load(tmp_path / "some.ckpt", weights_only=True)
    store = content["filterscope"]["visual_state"]["store"]
    assert sorted(store["history"]["conv"]) == [0, 1, 2]
    assert set(store["metrics"][2]) == {"val_loss"}


def test_the_last_epoch_is_known_as_such(tmp_path: Path) -> None:
    import pytorch_lightning as pl

    told = []

    class Noting(Visual):
        def __call__(self, _classifier: object, _examples: object, state: VisualState) -> dict:
            told.append((state.epoch, state.last))
            return {}

    fit(pl, tmp_path, [LogVisuals({"noting": Noting()}, examples=IMAGES[:2])])
    assert told == [(0, False), (1, False), (2, True)]


def test_pictures_go_to_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    import pytorch_lightning as pl

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = pl.loggers.WandbLogger(save_dir=tmp_path, offline=True)
    fit(pl, tmp_path, [LogVisuals(["filters"], examples=IMAGES[:2])], logger)
    logger.experiment.finish()
    pictures = [path.name for path in tmp_path.rglob("media/images/filters/*.png")]
    assert sum(name.startswith("stem.conv_") for name in pictures) == 3


def test_a_training_without_images_to_look_at_is_told_so(tmp_path: Path) -> None:
    import pytorch_lightning as pl

    with pytest.raises(UserError, match=r"LogVisuals needs images to draw: give examples=images"):
        fit(pl, tmp_path, [LogVisuals(["filters"])])


def test_a_network_that_is_not_there_is_told_so(tmp_path: Path) -> None:
    import pytorch_lightning as pl

    with pytest.raises(UserError, match=r"Theirs has no network='model'; it has net"):
        fit(pl, tmp_path, [LogVisuals(["filters"], examples=IMAGES, network="model")])


@pytest.mark.parametrize("name", ["pytorch_lightning", "lightning.pytorch"])
def test_visuals_of_the_end_are_drawn_in_any_training(name: str, tmp_path: Path) -> None:
    lightning = importlib.import_module(name)
    fit(lightning, tmp_path, [LogVisuals(["history", "movies"], examples=IMAGES[:2], folder=tmp_path)])
    movies = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("pictures/movies/**/*.*"))
    assert movies, "no film was drawn"


@pytest.mark.parametrize("name", ["pytorch_lightning", "lightning.pytorch"])
def test_the_callback_is_pickled_with_its_state(name: str, tmp_path: Path) -> None:
    lightning = importlib.import_module(name)
    looks = LogVisuals(["filters", "history"], examples=IMAGES[:2], folder=tmp_path)
    fit(lightning, tmp_path, [looks])
    again = pickle.loads(pickle.dumps(looks))
    assert isinstance(again, lightning.Callback)
    assert isinstance(again, LogVisuals)
    assert again.state.store["history"].keys() == looks.state.store["history"].keys()
    fit(lightning, tmp_path, [again])


def test_fast_dev_run_draws_and_leaves_no_files(tmp_path: Path) -> None:
    import pytorch_lightning as pl

    looks = LogVisuals(["filters", "health"], examples=IMAGES, folder=tmp_path / "run", strict=True)
    fit(pl, tmp_path, [looks], fast_dev_run=True)
    assert not (tmp_path / "run").exists()
    assert looks.state.store["health"]


def test_pictures_are_written_below_the_root_where_no_logger_shows_them(tmp_path: Path) -> None:
    import pytorch_lightning as pl

    fit(pl, tmp_path, [LogVisuals(["filters"], examples=IMAGES[:2])], pl.loggers.CSVLogger(tmp_path / "csv"))
    assert (tmp_path / "pictures/filters/conv/epoch_002.png").is_file()


@pytest.mark.parametrize(
    "labels",
    [
        LABELS + 1,
        LABELS * 50 - 100,
        LABELS.bool(),
        LABELS.to(torch.uint8),
        torch.rand(12, generator=GENERATOR),
        torch.rand(12, 3, generator=GENERATOR),
    ],
    ids=["from one", "ignored", "bool", "uint8", "regression", "soft"],
)
def test_no_labels_end_the_training(labels: Tensor, tmp_path: Path) -> None:
    import pytorch_lightning as pl

    class AnyLabels(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def training_step(self, batch: Any, _index: int) -> Tensor:
            return self.net(batch[0]).square().mean()

        def validation_step(self, batch: Any, _index: int) -> None:
            self.net(batch[0])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    loader = DataLoader(TensorDataset(IMAGES, labels), batch_size=4)
    looks = LogVisuals(["health"], examples=IMAGES, folder=tmp_path, strict=True)
    options = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", callbacks=[looks], logger=False, **options)
    trainer.fit(AnyLabels(), loader, loader)
    assert (tmp_path / "health" / "epoch_001.csv").is_file()


def test_layers_that_are_replaced_in_training_are_drawn(tmp_path: Path) -> None:
    import pytorch_lightning as pl

    class Replaces(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.current_epoch == 1:
                pl_module.net.out = nn.Linear(12, 3)
                pl_module.net.conv = nn.Conv2d(6, 12, 3)

    looks = LogVisuals(["filters", "health"], examples=IMAGES, folder=tmp_path, strict=True)
    fit(pl, tmp_path, [Replaces(), looks])
    rows = [(tmp_path / "health" / f"epoch_00{epoch}.csv").read_text().count("\nconv,") for epoch in (1, 2)]
    assert rows == [8, 12]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"examples": torch.rand(2, 3, 2, 2)}, "images of 3×2×2 cannot pass through Net: .*Kernel size"),
        ({"examples": torch.rand(2, 1, 24, 24)}, "images of 1 channels; the network takes 3"),
        ({"mean": 0.5}, "mean=0.5: must be 3 finite numbers"),
        ({"std": [0, 1, 1]}, r"std=\[0, 1, 1\]: must be 3 finite positive numbers"),
    ],
)
def test_what_cannot_be_drawn_is_one_warning_with_the_true_reason(
    options: dict, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import pytorch_lightning as pl

    fit(pl, tmp_path, [LogVisuals(["filters"], folder=tmp_path, **({"examples": IMAGES} | options))])
    (warning,) = [message for message in caplog.messages if message.startswith("LogVisuals")]
    assert re.search(rf"nothing is drawn \({reason}.*training goes on", warning)


class Broken(Visual):
    def __call__(self, *_arguments: object) -> dict:
        raise ZeroDivisionError("division by zero")


def test_an_error_of_a_visual_is_one_warning_and_the_training_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import pytorch_lightning as pl

    looks = LogVisuals({"broken": Broken(), "filters": Filters()}, examples=IMAGES[:2], folder=tmp_path)
    fit(pl, tmp_path, [looks])
    assert [record.message for record in caplog.records if "broken" in record.message] == [
        "LogVisuals: broken is left out from now on (ZeroDivisionError: division by zero); training goes on"
    ]
    assert (tmp_path / "pictures/filters/conv/epoch_002.png").is_file()

    strict = LogVisuals(
        {"filters": Filters(), "broken": Broken()}, examples=IMAGES[:2], folder=tmp_path / "strict", strict=True
    )
    with pytest.raises(ZeroDivisionError):
        fit(pl, tmp_path, [strict])
    assert (tmp_path / "strict/pictures/filters/conv/epoch_000.png").is_file(), "a picture is written once it is drawn"


def test_weights_that_are_not_finite_do_not_end_the_training(tmp_path: Path) -> None:
    import pytorch_lightning as pl

    class Diverges(pl.Callback):
        def on_train_epoch_start(self, _trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            with torch.no_grad():
                pl_module.net.conv.weight.fill_(float("nan"))

    looks = LogVisuals(["filters", "activations", "health"], examples=IMAGES, folder=tmp_path)
    fit(pl, tmp_path, [Diverges(), looks])
    assert (tmp_path / "pictures/filters/conv/epoch_000.png").is_file()


def test_an_error_of_a_visual_leaves_the_stored_state_of_the_others(tmp_path):
    callback = LogVisuals({"broken": Broken(), "filters": Filters()}, examples=IMAGES)
    stored = {"visual_state": {"epoch": 1, "store": {"timeline": {"conv_1": {"channels": [0]}}}}}
    callback.on_load_checkpoint(None, None, {"filterscope": stored})
    fit(importlib.import_module("pytorch_lightning"), tmp_path, [callback])
    assert list(callback.visuals) == ["filters"]
    assert callback.state.store["timeline"] == {"conv_1": {"channels": [0]}}
