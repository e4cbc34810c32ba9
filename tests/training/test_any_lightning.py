"""`LogVisuals` in the training of somebody else: any LightningModule, both Lightnings, other loggers."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from filterscope import LogVisuals
from filterscope.errors import UserError
from filterscope.visuals.visual import VisualState

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

        def training_step(self, batch: Any, _index: int) -> Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch: Any, _index: int) -> None:
            self.log("val_loss", F.cross_entropy(self.net(batch[0]), batch[1]))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    torch.manual_seed(0)
    return Theirs()


def fit(lightning: Any, folder: Path, callbacks: list, logger: Any = False) -> dict[str, Tensor]:
    loader = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4)
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
    assert sorted(content["filterscope"]["visual_state"]["store"]["history"]["conv"]) == [0, 1, 2]


def test_the_last_epoch_is_known_as_such(tmp_path: Path) -> None:
    import pytorch_lightning as pl

    told = []

    class Noting:
        every = 1

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

    with pytest.raises(UserError, match=r"LogVisuals needs images to look at: give examples=images"):
        fit(pl, tmp_path, [LogVisuals(["filters"])])


def test_a_network_that_is_not_there_is_told_so(tmp_path: Path) -> None:
    import pytorch_lightning as pl

    with pytest.raises(UserError, match=r"Theirs has no network='model'; it has net"):
        fit(pl, tmp_path, [LogVisuals(["filters"], examples=IMAGES, network="model")])
