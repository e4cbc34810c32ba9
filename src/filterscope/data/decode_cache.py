"""Decoded images on disk: one flat file of uint8 pixels, mapped into memory, built once by all workers."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from filterscope.data import image_io, preprocessing
from filterscope.data.image_io import BadImageError, read_image
from filterscope.data.images import Files, Images
from filterscope.data.loader import identity_collate
from filterscope.data.preprocessing import resized
from filterscope.storage.disk_cache import build_once, cache_key

KNOB = "data.cache"


@dataclass(frozen=True, kw_only=True)
class CachedFiles:
    """Image files whose pixels lie decoded in a cache; `rows` says where in it each one is."""

    files: Files
    folder: Path
    rows: Tensor
    num_channels: int

    @property
    def labels(self) -> Tensor:
        """The class of each image."""
        return self.files.labels

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int, *, num_channels: int) -> Tensor:
        """Return one image, `(num_channels, H, W)` uint8, without copying it."""
        assert num_channels == self.num_channels
        start, height, width = self._shapes[int(self.rows[index])]
        part = self._pixels[start : start + height * width * num_channels]
        return torch.from_numpy(part.reshape(height, width, num_channels)).permute(2, 0, 1)

    def name(self, index: int) -> str:
        """Return the file's path."""
        return self.files.name(index)

    def select(self, indices: Tensor, labels: Tensor) -> "CachedFiles":
        """Return the images at these places, with these labels."""
        files = self.files.select(indices, labels)
        return CachedFiles(files=files, folder=self.folder, rows=self.rows[indices], num_channels=self.num_channels)

    def identity(self) -> list[object]:
        """Return every file's path, size and time of change."""
        return self.files.identity()

    @cached_property
    def _pixels(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        # Copy-on-write: torch takes no read-only arrays, and nobody writes.
        return np.memmap(self.folder / "pixels.bin", dtype=np.uint8, mode="c")

    @cached_property
    def _shapes(self) -> list[list[int]]:
        shapes: list[list[int]] = np.load(self.folder / "shapes.npy", allow_pickle=False).tolist()
        return shapes

    def __getstate__(self) -> dict[str, Any]:
        """Leave the mapped pixels behind: a process opens them for itself."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}


def cached(
    splits: Mapping[str, Images], place: Path, *, side: int, num_channels: int, num_workers: int
) -> dict[str, Images]:
    """Return the splits with the files among them read from a cache below `place`, which is built where it is missing.

    The key holds every file's path, size and time of change, so that a changed file means another cache.

    Args:
        splits: images that lie in memory already stay as they are.
        place: the folder in which caches lie.
        side: pixels of the shorter side.
        num_channels: 1 or 3.
        num_workers: processes that decode.

    Raises:
        UserError: the folder cannot be written or has too little room, or a file is damaged.
    """
    paths = sorted({path for images in splits.values() if isinstance(images, Files) for path in images.paths})
    if not paths:
        return dict(splits)
    about = Files(paths=tuple(paths), labels=torch.empty(0)).identity()
    folder = build_once(
        place / "images",
        key=cache_key((about, side, num_channels), code=(image_io, preprocessing)),
        needs=len(paths) * side * side * num_channels,
        knob=KNOB,
        build=lambda folder: _build(folder, paths, side=side, num_channels=num_channels, num_workers=num_workers),
    )
    row = {path: number for number, path in enumerate(paths)}
    return {
        split: CachedFiles(
            files=images,
            folder=folder,
            rows=torch.tensor([row[path] for path in images.paths]),
            num_channels=num_channels,
        )
        if isinstance(images, Files)
        else images
        for split, images in splits.items()
    }


@dataclass(frozen=True, kw_only=True)
class _Decoded(Dataset[Tensor | BadImageError]):
    paths: Sequence[str]
    side: int
    num_channels: int

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor | BadImageError:
        try:
            return resized(read_image(self.paths[index], num_channels=self.num_channels), self.side)
        except BadImageError as error:
            return error


def _build(folder: Path, paths: Sequence[str], *, side: int, num_channels: int, num_workers: int) -> dict[str, Any]:
    """Write `pixels.bin`, the images one behind the other as `(H, W, C)`, and `shapes.npy`: start, height, width."""
    decoded = DataLoader(
        _Decoded(paths=paths, side=side, num_channels=num_channels),
        batch_size=None,
        num_workers=num_workers,
        collate_fn=identity_collate,
        generator=torch.Generator(),
    )
    shapes, start = [], 0
    with (folder / "pixels.bin").open("wb") as file:
        for image in track(decoded, description="decoding", total=len(paths), transient=True):
            if isinstance(image, BadImageError):
                raise image
            file.write(image.permute(1, 2, 0).contiguous().numpy().tobytes())
            shapes.append((start, *image.shape[1:]))
            start += image.numel()
        file.flush()
        os.fsync(file.fileno())
    np.save(folder / "shapes.npy", np.array(shapes, dtype=np.int64), allow_pickle=False)
    return {"side": side, "num_channels": num_channels, "images": len(paths)}
