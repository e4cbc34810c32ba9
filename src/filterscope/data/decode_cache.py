"""A cache of decoded and resized images on disk: one file of uint8 pixels that all processes map into memory."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from filterscope.data import image_io, preprocessing
from filterscope.data.image_io import BadImageError, Decoding, decode_files
from filterscope.data.images import Files, Images
from filterscope.data.preprocessing import resize
from filterscope.runtime.terminal import tracked
from filterscope.storage.disk_cache import build_once, cache_key


@dataclass(frozen=True, kw_only=True)
class CachedFiles(Files):
    """Image files whose pixels are read from a cache; `rows` are their int64 indices in it, `(N,)`."""

    folder: Path
    rows: Tensor
    num_channels: int

    def read(self, index: int, *, num_channels: int) -> Tensor:
        """Return one image, `(num_channels, H, W)` uint8, as a view of the mapped file."""
        assert num_channels == self.num_channels
        start, height, width = self._shapes[int(self.rows[index])]
        pixels = self._pixels[start : start + height * width * num_channels]
        return torch.from_numpy(pixels.reshape(height, width, num_channels)).permute(2, 0, 1)

    def select(self, indices: Tensor, labels: Tensor) -> "CachedFiles":
        """Return the images at these indices with new labels."""
        paths = tuple(self.paths[i] for i in indices.tolist())
        return replace(self, paths=paths, labels=labels, rows=self.rows[indices])

    @cached_property
    def _pixels(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        # Mapped copy-on-write ("c"), because torch accepts no read-only arrays; nothing writes to it.
        return np.memmap(self.folder / "pixels.bin", dtype=np.uint8, mode="c")

    @cached_property
    def _shapes(self) -> list[list[int]]:
        shapes: list[list[int]] = np.load(self.folder / "shapes.npy", allow_pickle=False).tolist()
        return shapes

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the mapped pixels, which each process opens for itself."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}


def cache_files(
    splits: Mapping[str, Images], folder: Path, *, side: int, num_channels: int, num_workers: int
) -> dict[str, Images]:
    """Return splits whose files are read from a cache, building it if it is missing.

    The cache's key contains every file's path, size and modification time, so a changed file leads to a new cache.

    Args:
        splits: the images of each split; images in memory stay as they are.
        folder: the folder of all caches.
        side: the length in pixels to which the shorter side is resized.
        num_channels: 1 or 3.
        num_workers: loader processes that decode.

    Raises:
        UserError: the folder cannot be written or has too little space, or a file is damaged.
    """
    files = [images for images in splits.values() if isinstance(images, Files)]
    paths = sorted({path for images in files for path in images.paths})
    if not paths:
        return dict(splits)
    decoding = files[0].decoding
    identity = Files(paths=tuple(paths), labels=torch.empty(0), decoding=decoding).identity()
    entry = build_once(
        folder / "images",
        key=cache_key((identity, side, num_channels), code=(image_io, preprocessing)),
        num_bytes=len(paths) * side * side * num_channels,
        option="data.cache",
        build=partial(
            _build, paths=paths, side=side, num_channels=num_channels, num_workers=num_workers, decoding=decoding
        ),
    )
    row = {path: number for number, path in enumerate(paths)}
    cached: dict[str, Images] = dict(splits)
    for split, images in splits.items():
        if isinstance(images, Files):
            rows = torch.tensor([row[path] for path in images.paths])
            about = {name: getattr(images, name) for name in Files.__dataclass_fields__}
            cached[split] = CachedFiles(**about, folder=entry, rows=rows, num_channels=num_channels)
    return cached


def _build(
    folder: Path, paths: Sequence[str], *, side: int, num_channels: int, num_workers: int, decoding: Decoding
) -> dict[str, Any]:
    """Write `pixels.bin`, the images one after the other as `(H, W, C)`, and `shapes.npy`: start, height, width."""
    decoded = decode_files(
        paths, partial(resize, side=side), num_channels=num_channels, num_workers=num_workers, decoding=decoding
    )
    shapes, start = [], 0
    with (folder / "pixels.bin").open("wb") as file:
        for image in tracked(decoded, "decoding", total=len(paths)):
            if isinstance(image, BadImageError):
                raise image
            file.write(image.permute(1, 2, 0).contiguous().numpy().tobytes())
            shapes.append((start, *image.shape[1:]))
            start += image.numel()
        file.flush()
        os.fsync(file.fileno())
    np.save(folder / "shapes.npy", np.array(shapes, dtype=np.int64), allow_pickle=False)
    return {"side": side, "num_channels": num_channels, "images": len(paths)}
