"""Oxford Flowers 102, in the folders of torchvision or in `flower_data` folders."""

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from scipy.io import loadmat
from scipy.io.matlab import MatReadError
from torchvision.datasets import Flowers102

from filterscope.data.datamodule import ImageDataModule, ResizeRatio
from filterscope.data.folder import Layout, display_names, files_below, find_layout, split_files
from filterscope.data.images import DataSplits, Files
from filterscope.errors import UserError
from filterscope.registry import register
from filterscope.storage.download import download_lock, fetch, missing_data_error, unpack_tar

log = logging.getLogger(__name__)

_URL = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
_IMAGES = "102flowers.tgz"
_TABLES = ("imagelabels.mat", "setid.mat")
_MD5 = {
    _IMAGES: "52808999861908f626f3c1f4e79d11fa",
    "imagelabels.mat": "e0620be6f572b9609742df49c70aed4d",
    "setid.mat": "a5357ecc9cb78c4bef273ce3793fc85c",
}
_MAX_BYTES = 1 << 30  # of the unpacked images
_SPLIT_KEYS = {"train": "trnid", "val": "valid", "test": "tstid"}  # in setid.mat


@register("data")
@dataclass(kw_only=True, eq=False, repr=False)
class FlowersDataModule(ImageDataModule):
    """The 102 kinds of flowers in their official splits, below `root/flowers-102` or in `root` itself.

    Alternatively `root/flower_data` or `root` holds `train/ valid/ test/` with the class folders 1 to 102; a
    `cat_to_name.json` beside them names the classes. A test split with missing files is left out with a log line.
    """

    resize_ratio: ResizeRatio = 256 / 224
    download: bool = True

    def prepare_data(self) -> None:
        """Download the data set if it is missing."""
        if self._official() or self._class_folders():
            return
        folder = self.folder / "flowers-102"
        if not self.download:
            raise missing_data_error("Flowers 102", root=self.root, files="flowers-102/jpg or flower_data/train")
        with download_lock("Flowers 102", url=_URL, files=", ".join(_MD5), folder=folder):
            _download(folder)

    def find(self) -> DataSplits:
        """List the images of each split."""
        official = self._official()
        if official:
            return _find_official(official)
        layout = self._class_folders()
        assert layout is not None
        order, files = split_files(layout.splits)
        return DataSplits(
            location=layout.location,
            class_names=display_names(order, layout.folder, self.folder, otherwise=_class_name),
            train=files["train"],
            val=files.get("val"),
            test=files.get("test"),
            held_out={"val": 0.15, "test": 0.0},
        )

    def _official(self) -> Path | None:
        folders = (self.folder / "flowers-102", self.folder)
        return next((f for f in folders if (f / "jpg").is_dir() and all((f / t).is_file() for t in _TABLES)), None)

    def _class_folders(self) -> Layout | None:
        folders = [each for each in (self.folder / "flower_data", self.folder) if each.is_dir()]
        return next((layout for layout in map(find_layout, folders) if "train" in layout.splits), None)


def _download(folder: Path) -> None:
    """Download what is missing; the folder `jpg` appears when all images are unpacked."""
    for table in _TABLES:
        if not (folder / table).is_file():
            fetch(_URL + table, folder / table, digest=f"md5:{_MD5[table]}")
    if not (folder / "jpg").is_dir():
        fetch(_URL + _IMAGES, folder / _IMAGES, digest=f"md5:{_MD5[_IMAGES]}")
        unpacked = folder / ".unpacked"
        shutil.rmtree(unpacked, ignore_errors=True)  # of a process that was killed
        unpack_tar(folder / _IMAGES, unpacked, max_bytes=_MAX_BYTES)
        (unpacked / "jpg").rename(folder / "jpg")
        shutil.rmtree(unpacked)
        (folder / _IMAGES).unlink()


def _find_official(folder: Path) -> DataSplits:
    try:
        labels = loadmat(folder / _TABLES[0], squeeze_me=True)["labels"]
        splits = loadmat(folder / _TABLES[1], squeeze_me=True)
        numbers = {split: splits[key].tolist() for split, key in _SPLIT_KEYS.items()}
    except (OSError, ValueError, KeyError, TypeError, MatReadError) as error:
        raise UserError(
            f"{folder / _TABLES[0]} or {_TABLES[1]} is damaged ({error}); delete both, fetch them again"
        ) from error
    present = set(files_below(folder / "jpg"))
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
        location=str(folder),
        class_names=tuple(Flowers102.classes),
        train=parts["train"],
        val=parts["val"],
        test=parts.get("test"),
    )


def _class_name(folder: str) -> str:
    known = folder.isdecimal() and 1 <= int(folder) <= len(Flowers102.classes)
    return str(Flowers102.classes[int(folder) - 1]) if known else folder
