"""The idx files of MNIST and FashionMNIST, as torchvision lays them below a root."""

import logging
from pathlib import Path

from torchvision.datasets import MNIST
from torchvision.datasets.mnist import read_image_file, read_label_file

from filterscope.data.fetch import download_lock, missing_data_error
from filterscope.data.images import DataSplits, Pixels
from filterscope.errors import UserError
from filterscope.storage.archives import unpack_file
from filterscope.storage.download import fetch, is_safe

log = logging.getLogger(__name__)

# torchvision knows FashionMNIST at an address without https only; these are its authors' own, with the same hashes.
_FASHION = "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/"

_FILES = {
    split: [f"{prefix}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1")]
    for split, prefix in (("train", "train"), ("test", "t10k"))
}


def fetch_idx(dataset: type[MNIST], *, root: str, download: bool) -> None:
    """Download the four files where one of the two for training is missing."""
    folder = _folder(dataset, root)
    if _complete(folder, "train"):
        return
    name = dataset.__name__
    if not download:
        raise missing_data_error(name, root=root, files=f"{name}/raw/{_FILES['train'][0]} …")
    address = next((mirror for mirror in dataset.mirrors if is_safe(mirror)), _FASHION)
    with download_lock(name, url=address, files=", ".join(file for file, _ in dataset.resources), place=folder):
        for packed, digest in dataset.resources:
            file = folder / packed
            if not file.with_suffix("").is_file():
                fetch(address + packed, file, digest=f"md5:{digest}")
                unpack_file(file, file.with_suffix(""), at_most=1 << 27)
                file.unlink()


def find_idx(dataset: type[MNIST], *, root: str, class_names: tuple[str, ...], val_fraction: float) -> DataSplits:
    """Read what is there; without the two test files there is no test split."""
    folder = _folder(dataset, root)
    test = None
    if _complete(folder, "test"):
        test = _read(folder, "test")
    else:
        log.info("no test split: %s has not both of %s", folder, " and ".join(_FILES["test"]))
    return DataSplits(
        place=str(folder),
        class_names=class_names,
        train=_read(folder, "train"),
        test=test,
        held_out={"val": val_fraction, "test": 0.0},
    )


def _folder(dataset: type[MNIST], root: str) -> Path:
    return Path(root).expanduser() / dataset.__name__ / "raw"


def _complete(folder: Path, split: str) -> bool:
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
