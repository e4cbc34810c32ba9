"""Where images come from: files that are decoded when asked for, or pixels that lie in memory."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from filterscope.data.image_io import read_image


class Images(Protocol):
    """Images with labels; `labels` is int64 `(N,)`, −1 where nobody said one."""

    @property
    def labels(self) -> Tensor:
        """The class of each image."""

    def __len__(self) -> int: ...

    def read(self, index: int, *, num_channels: int) -> Tensor:
        """Return one image, `(num_channels, H, W)` uint8."""

    def name(self, index: int) -> str:
        """Return what a person calls the image."""

    def select(self, indices: Tensor, labels: Tensor) -> "Images":
        """Return the images at these places, with these labels instead of their own."""

    def identity(self) -> list[object]:
        """Return plain data that changes with any of the images or their order."""


@dataclass(frozen=True, kw_only=True)
class Files:
    """Image files, decoded each time they are read."""

    paths: tuple[str, ...]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int, *, num_channels: int) -> Tensor:
        """Decode one file, `(num_channels, H, W)` uint8."""
        return read_image(self.paths[index], num_channels=num_channels)

    def name(self, index: int) -> str:
        """Return the file's path."""
        return self.paths[index]

    def select(self, indices: Tensor, labels: Tensor) -> "Files":
        """Return the files at these places, with these labels."""
        return Files(paths=tuple(self.paths[i] for i in indices.tolist()), labels=labels)

    def identity(self) -> list[object]:
        """Return every file's path, size and time of change."""
        stats = [Path(path).stat() for path in self.paths]
        return [(path, stat.st_size, stat.st_mtime_ns) for path, stat in zip(self.paths, stats, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """Images in memory, `(N, 1 or 3, H, W)` uint8; `numbers` says which of the whole set each one is."""

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
        """Return one image, `(num_channels, H, W)` uint8; grey repeated, or colours weighed as the eye does."""
        image = self.pixels[index]
        if len(image) == num_channels:
            return image
        if num_channels == 3:
            return image.expand(3, -1, -1)
        weights = torch.tensor([0.299, 0.587, 0.114])  # ITU-R 601, as Pillow weighs them
        return torch.einsum("chw,c->hw", image.float(), weights).round().to(torch.uint8)[None]

    def name(self, index: int) -> str:
        """Return the set's title and the image's number in it."""
        return f"{self.title} {int(self.numbers[index])}"

    def select(self, indices: Tensor, labels: Tensor) -> "Pixels":
        """Return the images at these places, with these labels."""
        return Pixels(pixels=self.pixels[indices], labels=labels, title=self.title, numbers=self.numbers[indices])

    def identity(self) -> list[object]:
        """Return a hash of the pixels."""
        return [tuple(self.pixels.shape), hashlib.sha256(self.pixels.numpy().tobytes()).hexdigest()]


@dataclass(frozen=True, kw_only=True)
class DataSplits:
    """What a set consists of, before classes are left out and anything is split.

    `val=None` and `test=None` are cut from `train`, in the fractions that `held_out` says (0: there is none).
    `class_names` is empty where the images have no labels; `unlabelled` then says why. `place` is where the images
    lie, for messages.
    """

    place: str
    class_names: tuple[str, ...]
    train: Images
    val: Images | None = None
    test: Images | None = None
    held_out: Mapping[str, float] = field(default_factory=lambda: {"val": 0.0, "test": 0.0})
    unlabelled: str = ""
