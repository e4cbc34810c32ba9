"""MNIST: handwritten digits, 28×28 in one channel."""

from dataclasses import dataclass

from torchvision.datasets import MNIST

from filterscope.data.datamodule import ImageDataModule
from filterscope.data.idx import fetch_idx, find_idx
from filterscope.data.images import DataSplits
from filterscope.registry import register


@register("data")
@dataclass(kw_only=True, eq=False, repr=False)
class MNISTDataModule(ImageDataModule):
    """The digits below `root/MNIST/raw`; validation images are cut from the training ones."""

    image_size: int = 28
    num_channels: int = 1
    val_fraction: float = 0.1
    download: bool = True

    def prepare_data(self) -> None:
        """Download what is not there."""
        fetch_idx(MNIST, root=self.root, download=self.download)

    def find(self) -> DataSplits:
        """Read the idx files."""
        digits = tuple(str(digit) for digit in range(10))
        return find_idx(MNIST, root=self.root, class_names=digits, val_fraction=self.val_fraction)
