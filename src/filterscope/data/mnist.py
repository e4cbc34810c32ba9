"""MNIST and FashionMNIST: 28×28 images in one channel, in the files and folders of torchvision."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import PositiveInt
from torchvision import datasets
from torchvision.datasets.mnist import read_image_file, read_label_file

from filterscope.data.datamodule import Fraction, ImageDataModule
from filterscope.data.images import DataSplits, Pixels
from filterscope.errors import UserError
from filterscope.registry import register
from filterscope.storage.download import download_lock, fetch, is_safe, missing_data_error, unpack_gzip

log = logging.getLogger(__name__)

# torchvision has only an http address for FashionMNIST; this is the authors' own, with the same hashes.
_FASHION_URL = "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/"

_FILES = {
    split: [f"{prefix}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1")]
    for split, prefix in (("train", "train"), ("test", "t10k"))
}
_MAX_BYTES = 1 << 27  # of an unpacked file; the largest has 47 MB


@register("data")
@dataclass(kw_only=True, eq=False, repr=False)
class MNISTDataModule(ImageDataModule):
    """The handwritten digits below `root/MNIST/raw`; validation images are cut from the training images."""

    image_size: PositiveInt = 28
    num_channels: Literal[1, 3] = 1
    val_fraction: Fraction = 0.1
    download: bool = True

    dataset: ClassVar[type[datasets.MNIST]] = datasets.MNIST
    names: ClassVar[tuple[str, ...]] = tuple(map(str, range(10)))

    def prepare_data(self) -> None:
        """Download the files if one of the two training files is missing."""
        folder = self._raw_folder()
        if _has_files(folder, "train"):
            return
        name = self.dataset.__name__
        if not self.download:
            raise missing_data_error(name, root=self.root, files=f"{name}/raw/{_FILES['train'][0]} …")
        url = next((mirror for mirror in self.dataset.mirrors if is_safe(mirror)), _FASHION_URL)
        files = ", ".join(file for file, _ in self.dataset.resources)
        with download_lock(name, url=url, files=files, folder=folder):
            for file, md5 in self.dataset.resources:
                unpacked = (folder / file).with_suffix("")
                if not unpacked.is_file():
                    fetch(url + file, folder / file, digest=f"md5:{md5}")
                    unpack_gzip(folder / file, unpacked, max_bytes=_MAX_BYTES)
                    (folder / file).unlink()

    def find(self) -> DataSplits:
        """Read the files; without the two test files there is no test split."""
        folder = self._raw_folder()
        test = _read(folder, "test") if _has_files(folder, "test") else None
        if test is None:
            log.info("no test split: %s lacks %s", folder, " or ".join(_FILES["test"]))
        return DataSplits(
            location=str(folder),
            class_names=self.names,
            train=_read(folder, "train"),
            test=test,
            held_out={"val": self.val_fraction, "test": 0.0},
        )

    def _raw_folder(self) -> Path:
        return self.folder / self.dataset.__name__ / "raw"


@register("data")
@dataclass(kw_only=True, eq=False, repr=False)
class FashionMNISTDataModule(MNISTDataModule):
    """The ten kinds of clothing below `root/FashionMNIST/raw`; validation images are cut from the training images."""

    dataset: ClassVar[type[datasets.MNIST]] = datasets.FashionMNIST
    names: ClassVar[tuple[str, ...]] = tuple(datasets.FashionMNIST.classes)


def _has_files(folder: Path, split: str) -> bool:
    return all((folder / file).is_file() for file in _FILES[split])


def _read(folder: Path, split: str) -> Pixels:
    images, labels = (folder / file for file in _FILES[split])
    try:
        pixels, classes = read_image_file(str(images)), read_label_file(str(labels))
    except (OSError, ValueError, AssertionError, RuntimeError, IndexError, KeyError, TypeError) as error:
        raise UserError(f"{images} or {labels.name} is damaged; delete both and fetch them again") from error
    if len(pixels) != len(classes) or int(classes.max()) > 9:
        raise UserError(f"{images} has {len(pixels)} images, {labels.name} {len(classes)} labels up to {classes.max()}")
    return Pixels(pixels=pixels[:, None], labels=classes, title=split)
