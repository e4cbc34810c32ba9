"""Oxford Flowers 102, as torchvision lays it out or in the notebooks' `flower_data` folders."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from scipy.io import loadmat
from scipy.io.matlab import MatReadError
from torchvision.datasets import Flowers102

from filterscope.data.class_folders import display_names, list_files, split_files, split_folders
from filterscope.data.datamodule import ImageDataModule
from filterscope.data.fetch import download_lock, missing_data_error
from filterscope.data.images import DataSplits, Files
from filterscope.errors import UserError
from filterscope.registry import register
from filterscope.storage.archives import unpack
from filterscope.storage.download import fetch

log = logging.getLogger(__name__)

_SPLITS = {"train": "trnid", "val": "valid", "test": "tstid"}
_MATS = ("imagelabels.mat", "setid.mat")
_IMAGES = "102flowers.tgz"
_URL = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"


@register("data")
@dataclass(kw_only=True, eq=False, repr=False)
class FlowersDataModule(ImageDataModule):
    """The 102 flowers in their official splits, below `root/flowers-102` or in `root` itself.

    `root/flower_data` or `root` may hold `train/ valid/ test/` with folders 1 … 102 instead; a `cat_to_name.json`
    beside them names the flowers. A test split whose files are not all there is left out, and a log line says so.
    """

    resize_ratio: float = 256 / 224
    download: bool = True

    def prepare_data(self) -> None:
        """Download the set where it is not there."""
        if self._official() or self._folders():
            return
        place = self.folder / "flowers-102"
        if not self.download:
            raise missing_data_error("Flowers 102", root=self.root, files="flowers-102/jpg or flower_data/train")
        with download_lock("Flowers 102", url=_URL, files=f"{_IMAGES}, {', '.join(_MATS)}", place=place):
            _fetch(place)

    def find(self) -> DataSplits:
        """List the images of each split."""
        official = self._official()
        if official:
            return _find_official(official)
        folders = self._folders()
        assert folders is not None
        order, files = split_files(split_folders(folders))
        return DataSplits(
            place=str(folders),
            class_names=display_names(order, folders, otherwise=_name),
            train=files["train"],
            val=files.get("val"),
            test=files.get("test"),
            held_out={"val": 0.15, "test": 0.0},
        )

    def _official(self) -> Path | None:
        places = (self.folder / "flowers-102", self.folder)
        return next((p for p in places if (p / "jpg").is_dir() and all((p / m).is_file() for m in _MATS)), None)

    def _folders(self) -> Path | None:
        places = (self.folder / "flower_data", self.folder)
        return next((p for p in places if "train" in split_folders(p)), None)


def _fetch(place: Path) -> None:
    """Download what is missing; the images appear when all of them are there."""
    for name, digest in Flowers102._file_dict.values():
        done = (place / "jpg").is_dir() if name == _IMAGES else (place / name).is_file()
        if not done:
            fetch(Flowers102._download_url_prefix + name, place / name, digest=f"md5:{digest}")
    if not (place / "jpg").is_dir():
        unpack(place / _IMAGES, place / "unpacked", at_most=1 << 30)
        (place / "unpacked" / "jpg").rename(place / "jpg")
        (place / "unpacked").rmdir()
        (place / _IMAGES).unlink()


def _find_official(folder: Path) -> DataSplits:
    try:
        labels = loadmat(folder / _MATS[0], squeeze_me=True)["labels"]
        splits = loadmat(folder / _MATS[1], squeeze_me=True)
        numbers = {split: splits[key].tolist() for split, key in _SPLITS.items()}
    except (OSError, ValueError, KeyError, TypeError, MatReadError) as error:
        raise UserError(
            f"{folder / _MATS[0]} or {_MATS[1]} is damaged ({error}); delete both, fetch them again"
        ) from error
    present = set(list_files(folder / "jpg"))
    parts: dict[str, Files] = {}
    for split, members in numbers.items():
        paths = [str(folder / "jpg" / f"image_{number:05d}.jpg") for number in members]
        missing = [path for path in paths if path not in present]
        if missing and split != "test":
            raise UserError(f"{len(missing)} of the {len(paths)} {split} images are not there, the first: {missing[0]}")
        if missing:
            log.info("no test split: %d of its %d images are not in %s", len(missing), len(paths), folder / "jpg")
            continue
        classes = torch.tensor([int(labels[number - 1]) - 1 for number in members], dtype=torch.int64)
        parts[split] = Files(paths=tuple(paths), labels=classes)
    return DataSplits(
        place=str(folder),
        class_names=tuple(Flowers102.classes),
        train=parts["train"],
        val=parts["val"],
        test=parts.get("test"),
    )


def _name(folder: str) -> str:
    known = folder.isdecimal() and 1 <= int(folder) <= len(Flowers102.classes)
    return str(Flowers102.classes[int(folder) - 1]) if known else folder
