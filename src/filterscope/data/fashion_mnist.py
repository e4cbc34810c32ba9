"""FashionMNIST: ten kinds of clothing, 28×28 in one channel."""

from dataclasses import dataclass

from torchvision.datasets import FashionMNIST

from filterscope.data.datamodule import ImageDataModule
from filterscope.data.idx import fetch_idx, find_idx
from filterscope.data.images import DataSplits
from filterscope.registry import register


@register("data")
@dataclass(kw_only=True, eq=False, repr=False)
class FashionMNISTDataModule(ImageDataModule):
    """The clothing below `root/FashionMNIST/raw`; validation images are cut from the training ones."""

    image_size: int = 28
    num_channels: int = 1
    val_fraction: float = 0.1
    download: bool = True

    def prepare_data(self) -> None:
        """Download what is not there."""
        fetch_idx(FashionMNIST, root=self.root, download=self.download)

    def find(self) -> DataSplits:
        """Read the idx files."""
        names = tuple(FashionMNIST.classes)
        return find_idx(FashionMNIST, root=self.root, class_names=names, val_fraction=self.val_fraction)
