"""Animals-10: ten animals in folders with Italian names, as published on Kaggle."""

import importlib
from dataclasses import dataclass
from pathlib import Path

from filterscope.data.datamodule import Fraction, ImageDataModule, ResizeRatio
from filterscope.data.folder import class_folders, labelled_files
from filterscope.data.images import DataSplits
from filterscope.errors import UserError
from filterscope.registry import register
from filterscope.storage.download import download_lock

ENGLISH = {
    "cane": "dog",
    "cavallo": "horse",
    "elefante": "elephant",
    "farfalla": "butterfly",
    "gallina": "chicken",
    "gatto": "cat",
    "mucca": "cow",
    "pecora": "sheep",
    "ragno": "spider",
    "scoiattolo": "squirrel",
}

KAGGLE = "alessiocorrado99/animals10"


@register("data")
@dataclass(kw_only=True, eq=False, repr=False)
class AnimalsDataModule(ImageDataModule):
    """The images in `animals10/raw-img/<Italian name>` or `raw-img/<Italian name>` below `root`.

    The data set has no splits of its own: validation and test images are cut off, seeded by the files' own names.
    """

    resize_ratio: ResizeRatio = 256 / 224
    val_fraction: Fraction = 0.15
    test_fraction: Fraction = 0.15
    download: bool = True

    def prepare_data(self) -> None:
        """Download the data set with `kagglehub` if it is missing."""
        if self._images_folder() is None:
            self._downloaded = self._download()

    def find(self) -> DataSplits:
        """List the images of the ten folders, ordered by English name."""
        folder = self._images_folder() or self._downloaded
        classes = tuple(sorted(class_folders(folder), key=lambda name: ENGLISH.get(name, name)))
        return DataSplits(
            location=str(folder),
            class_names=tuple(ENGLISH.get(name, name) for name in classes),
            train=labelled_files(folder, classes),
            held_out={"val": self.val_fraction, "test": self.test_fraction},
        )

    def _images_folder(self) -> Path | None:
        folders = (self.folder / "animals10" / "raw-img", self.folder / "raw-img")
        return next((folder for folder in folders if folder.is_dir()), None)

    def _download(self) -> Path:
        url, folder = f"https://www.kaggle.com/datasets/{KAGGLE}", self.folder / "animals10"
        by_hand = (
            f"data.root={self.root} holds no animals10/raw-img; unpack {url} so that {folder / 'raw-img'} is there"
        )
        if not self.download:
            raise UserError(by_hand)
        try:
            kagglehub = importlib.import_module("kagglehub")
        except ImportError as error:
            raise UserError(f'{by_hand}, or pip install "filterscope[animals]" to download it') from error
        with download_lock("Animals-10", url=url, files="raw-img of archive.zip", folder=folder):
            return Path(kagglehub.dataset_download(KAGGLE)) / "raw-img"
