"""Animals-10: ten animals in Kaggle's folders, called by their English names."""

import importlib
from dataclasses import dataclass
from pathlib import Path

from filterscope.data.class_folders import ClassFolders, class_folders
from filterscope.data.datamodule import ImageDataModule
from filterscope.data.fetch import download_lock
from filterscope.data.images import DataSplits
from filterscope.errors import UserError
from filterscope.registry import register

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
    """The folders `animals10/raw-img/<Italian name>` below `root`, or `raw-img` directly below it.

    The set has no splits of its own: validation and test images are cut off, stratified and seeded.
    """

    resize_ratio: float = 256 / 224
    val_fraction: float = 0.15
    test_fraction: float = 0.15
    download: bool = True

    def prepare_data(self) -> None:
        """Download the set through `kagglehub` where it is not there."""
        if self._place() is None:
            self._downloaded = _fetch(self.folder, wanted=self.download, root=self.root)

    def find(self) -> DataSplits:
        """List the ten folders, ordered by English name."""
        place = self._place() or self._downloaded
        found = class_folders(place)
        folders = tuple(sorted(found.folders, key=lambda folder: ENGLISH.get(folder, folder)))
        return DataSplits(
            place=str(place),
            class_names=tuple(ENGLISH.get(folder, folder) for folder in folders),
            train=ClassFolders(place=place, folders=folders).files(folders),
            held_out={"val": self.val_fraction, "test": self.test_fraction},
        )

    def _place(self) -> Path | None:
        places = (self.folder / "animals10" / "raw-img", self.folder / "raw-img")
        return next((place for place in places if place.is_dir()), None)


def _fetch(folder: Path, *, wanted: bool, root: str) -> Path:
    url = f"https://www.kaggle.com/datasets/{KAGGLE}"
    place = folder / "animals10"
    if not wanted:
        raise UserError(
            f"data.root={root} holds no animals10/raw-img; unpack {url} so that {place / 'raw-img'} is there"
        )
    try:
        kagglehub = importlib.import_module("kagglehub")
    except ImportError as error:
        raise UserError(
            f"data.root={root} holds no animals10/raw-img: unpack {url} so that {place / 'raw-img'} is there, "
            'or pip install "filterscope[animals]" to have it downloaded'
        ) from error
    with download_lock("Animals-10", url=url, files="raw-img of archive.zip", place=place):
        return Path(kagglehub.dataset_download(KAGGLE)) / "raw-img"
