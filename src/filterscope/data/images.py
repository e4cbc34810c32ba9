"""Labelled images, either files that are decoded when they are read, or pixels in memory."""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from filterscope.data.image_io import Decoding, read_image
from filterscope.errors import UserError
from filterscope.storage.disk_cache import hash_tensor


class Images(Protocol):
    """Images with labels, int64 `(N,)`, −1 for images without a label."""

    @property
    def labels(self) -> Tensor:
        """The class of each image."""

    def __len__(self) -> int: ...

    def read(self, index: int, *, num_channels: int) -> Tensor:
        """Return one image, `(num_channels, H, W)` uint8."""

    def name(self, index: int) -> str:
        """Return the name of an image for captions."""

    def key(self, index: int) -> str:
        """Return a name of an image that stays the same when the data is moved or images are added."""

    def select(self, indices: Tensor, labels: Tensor) -> "Images":
        """Return the images at these indices with new labels."""

    def identity(self) -> list[object]:
        """Return plain data that changes if any image or the order changes, for cache keys."""


@dataclass(frozen=True, kw_only=True)
class Files:
    """Image files, decoded each time they are read.

    Args:
        paths: of the files.
        labels: int64 `(N,)`.
        root: a folder, to which the keys of the files are relative.
        decoding: how they are decoded.
    """

    paths: tuple[str, ...]
    labels: Tensor
    root: str = ""
    decoding: Decoding = field(default_factory=Decoding)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int, *, num_channels: int) -> Tensor:
        """Decode one file, `(num_channels, H, W)` uint8."""
        return read_image(self.paths[index], num_channels=num_channels, decoding=self.decoding)

    def name(self, index: int) -> str:
        """Return a file's path."""
        return self.paths[index]

    def key(self, index: int) -> str:
        """Return a file's path below `root`."""
        return self.paths[index].removeprefix(self.root).replace(os.sep, "/")

    def select(self, indices: Tensor, labels: Tensor) -> "Files":
        """Return the files at these indices with new labels."""
        return dataclasses.replace(self, paths=tuple(self.paths[i] for i in indices.tolist()), labels=labels)

    def identity(self) -> list[object]:
        """Return the decoding, and every file's path, size and modification time."""
        stats = [Path(path).stat() for path in self.paths]
        files = [(path, stat.st_size, stat.st_mtime_ns) for path, stat in zip(self.paths, stats, strict=True)]
        return [self.decoding, *files]


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """Images in memory.

    Args:
        pixels: `(N, 1 or 3, H, W)` uint8.
        labels: int64 `(N,)`.
        title: the first part of the images' names.
        numbers: each image's number in the whole set, for its name; empty: 0 to N − 1.
    """

    pixels: Tensor
    labels: Tensor
    title: str
    numbers: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    def __post_init__(self) -> None:
        if not len(self.numbers):
            object.__setattr__(self, "numbers", torch.arange(len(self.labels)))

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int, *, num_channels: int) -> Tensor:
        """Return one image, `(num_channels, H, W)` uint8, converted between grey and RGB if needed."""
        image = self.pixels[index]
        if len(image) == num_channels:
            return image
        return image.expand(3, -1, -1) if num_channels == 3 else to_grey(image.float()).round().to(torch.uint8)

    def name(self, index: int) -> str:
        """Return the title and the image's number."""
        return f"{self.title} {int(self.numbers[index])}"

    key = name

    def select(self, indices: Tensor, labels: Tensor) -> "Pixels":
        """Return the images at these indices with new labels."""
        return Pixels(pixels=self.pixels[indices], labels=labels, title=self.title, numbers=self.numbers[indices])

    def identity(self) -> list[object]:
        """Return a hash of the pixels."""
        return [hash_tensor(self.pixels)]


@dataclass(frozen=True, kw_only=True)
class DataSplits:
    """The images of a data set as they were found, before classes are excluded and missing splits are cut off.

    Args:
        location: where the images lie, for messages.
        class_names: the names of the labels; empty if the images have none.
        train: the training images.
        val: the validation images; None: a fraction of the training images.
        test: the test images; None: a fraction of the training images, which may be 0.
        held_out: the fractions of the training images for `val` and `test`.
        unlabelled_reason: why the images have no labels, as an error message.
    """

    location: str
    class_names: tuple[str, ...]
    train: Images
    val: Images | None = None
    test: Images | None = None
    held_out: Mapping[str, float] = field(default_factory=lambda: {"val": 0.0, "test": 0.0})
    unlabelled_reason: str = ""


def joined(first: Images, second: Images) -> Images:
    """Return the images of both, which must be of one kind."""
    if type(first) is not type(second):
        raise UserError(f"{type(first).__name__} and {type(second).__name__} cannot be trained on together")
    parts: dict[str, Any] = {}
    whole: Any = first
    for name in (each.name for each in dataclasses.fields(whole)):
        one, other = getattr(first, name), getattr(second, name)
        if isinstance(one, Tensor):
            parts[name] = torch.cat([one, other])
        elif isinstance(one, tuple):
            parts[name] = one + other
        elif name == "root":
            parts[name] = os.path.commonpath([one, other]) if one and other else ""
    return cast(Images, dataclasses.replace(whole, **parts))


def to_grey(images: Tensor) -> Tensor:
    """Return RGB images, `(…, 3, H, W)` float, in grey, `(…, 1, H, W)`, weighted by ITU-R 601 as in Pillow."""
    return torch.einsum("...chw,c->...hw", images, torch.tensor([0.299, 0.587, 0.114])).unsqueeze(-3)
