"""Images packed into shards, tar files of the WebDataset format, and read from a folder or downloaded when needed.

The files are read by position, not as a stream, so that the order, the shares of the processes and the exact resume are
those of every other data set; therefore neither webdataset nor LitData is needed.
"""

import dataclasses
import hashlib
import io
import json
import tarfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import numpy as np
import torch
from pydantic import PositiveFloat
from torch import Tensor
from torchvision.io import encode_png

from filterscope.data.datamodule import ImageDataModule, ResizeRatio
from filterscope.data.image_io import BadImageError, Decoding, decode_image
from filterscope.data.images import DataSplits, Files, Images
from filterscope.errors import UserError, first_line
from filterscope.registry import register
from filterscope.runtime.terminal import tracked
from filterscope.storage.atomic import atomic_write, write_file
from filterscope.storage.download import download_lock, fetch, read_url
from filterscope.storage.safe_load import LOAD_ERRORS

CONTENTS = "contents.json"
INDEX = "index.npz"
_MAX_INDEX = 1 << 30  # bytes of a downloaded index: 40 million images
_MAX_RATIO = 40  # of an index's size in memory to that of its file; real lists of images stay far below it
_TRIES = 3  # downloads of a shard until the run ends


@dataclass(frozen=True, kw_only=True)
class ShardFolder:
    """The shards of a data set, in a folder or behind a URL.

    Args:
        root: the folder or the URL.
        names: of the shards.
        digests: their hashes, `sha256:…`.
        cache: the folder of downloaded shards; None: `root` is a folder.
        max_bytes: of all downloaded shards; those that were downloaded first are deleted.
    """

    root: str
    names: tuple[str, ...]
    digests: tuple[str, ...]
    cache: Path | None = None
    max_bytes: int = 0

    def read(self, name: str, start: int, size: int) -> bytes:
        """Return bytes of a shard, downloading it first if it is not there.

        Raises:
            UserError: the shard is missing, or cannot be downloaded.
        """
        path = self._path(name)
        for _ in range(_TRIES):  # another process may delete a shard between its download and this
            try:
                with path.open("rb") as file:
                    file.seek(start)
                    return file.read(size)
            except FileNotFoundError as error:
                if self.cache is None:
                    raise UserError(f"{path} is missing; {CONTENTS} beside it names it") from error
                self._download(name, path)
        raise UserError(f"{path} is deleted as soon as it is downloaded; a larger data.max_cache_gb keeps it")

    def _path(self, name: str) -> Path:
        if self.cache is None:
            return Path(self.root) / name
        return self.cache / f"{self._digest(name).partition(':')[2][:24]}.tar"

    def _digest(self, name: str) -> str:
        return self.digests[self.names.index(name)]

    def _download(self, name: str, path: Path) -> None:
        with download_lock(name, url=self.root, folder=path.parent):
            if path.is_file():
                return
            for trial in range(1, _TRIES + 1):
                try:
                    fetch(f"{self.root}/{name}", path, digest=self._digest(name))
                    break
                except (OSError, HTTPException) as error:
                    if isinstance(error, HTTPError):
                        error.close()
                    if trial == _TRIES:
                        raise
            self._make_room(path)

    def _make_room(self, new: Path) -> None:
        """Delete the shards that were downloaded first until the others and the new one fit."""
        named = new.parent.glob(f"{24 * '[0-9a-f]'}.tar")  # as `_path` names them; others are the user's own
        files = sorted(named, key=lambda file: (file == new, file.stat().st_mtime))
        excess = sum(file.stat().st_size for file in files) - self.max_bytes
        for file in files[:-1]:
            if excess > 0:
                excess -= file.stat().st_size
                file.unlink()


@dataclass(frozen=True, kw_only=True)
class Shards:
    """Images in shards.

    Args:
        folder: the shards of all splits.
        labels: int64 `(N,)`.
        numbers: of the images in their split, int64 `(N,)`.
        blocks: the number of the shard of each image, int64 `(N,)`.
        starts: the first byte of each image in its shard, int64 `(N,)`.
        sizes: the bytes of each image, int64 `(N,)`.
        decoding: how the images are decoded.
    """

    folder: ShardFolder
    labels: Tensor
    numbers: Tensor
    blocks: Tensor
    starts: Tensor
    sizes: Tensor
    decoding: Decoding

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int, *, num_channels: int) -> Tensor:
        """Read and decode one image, `(num_channels, H, W)` uint8."""
        shard, size = self._shard(index), int(self.sizes[index])
        data = self.folder.read(shard, int(self.starts[index]), size)
        name = f"{self.folder.root}/{shard}: {self.name(index)}"
        if len(data) < size:
            raise BadImageError(name, "the shard is not complete")
        return decode_image(data, name, num_channels=num_channels, decoding=self.decoding)

    def name(self, index: int) -> str:
        """Return the split and the image's number in it."""
        return f"{self._shard(index).rpartition('-')[0]} {int(self.numbers[index])}"

    key = name

    def select(self, indices: Tensor, labels: Tensor) -> "Shards":
        """Return the images at these indices with new labels."""
        parts = {name: getattr(self, name)[indices] for name in ("numbers", "blocks", "starts", "sizes")}
        return dataclasses.replace(self, labels=labels, **parts)

    def identity(self) -> list[object]:
        """Return the decoding, the hashes of the shards, and the images' numbers."""
        return [self.decoding, self.folder.digests, self.blocks.tolist(), self.numbers.tolist()]

    def _shard(self, index: int) -> str:
        return self.folder.names[int(self.blocks[index])]


@register("data")
@dataclass(kw_only=True, eq=False, repr=False)
class ShardsDataModule(ImageDataModule):
    """Images that `filterscope pack` has written to shards; `root` is their folder or a URL.

    In each epoch the shards come in random order, and the images of 16 shards at a time are shuffled together, so that
    the disk and the network are read in large pieces. Shards from a URL are kept in `cache`.

    Args:
        max_cache_gb: gigabytes of downloaded shards; those that were downloaded first are deleted.
    """

    resize_ratio: ResizeRatio = 256 / 224
    max_cache_gb: PositiveFloat = 100.0

    def find(self) -> DataSplits:
        """Read the list of the shards and their images."""
        remote = "://" in self.root
        root = self.root.rstrip("/") if remote else str(self.folder)
        if remote and self.cache is None:
            raise UserError(f"data.root={self.root} is a URL: give data.cache, a folder for what is downloaded")
        cache = Path(self.cache or "").expanduser() / "shards" if remote else None
        try:
            contents = json.loads(_read(root, CONTENTS))
            content = _read(root, INDEX)
            digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
            if contents["index"] != digest:
                raise ValueError(f"{INDEX} is not the one that {CONTENTS} belongs to")
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > _MAX_RATIO * len(content):
                raise ValueError(f"{INDEX} would unpack to {unpacked:,} bytes")
            table = np.load(io.BytesIO(content), allow_pickle=False)
            names = tuple(map(str, contents["class_names"]))
            self.bit_depth = self.bit_depth or contents["bit_depth"]
            shards = _checked({name: each for shards in contents["splits"].values() for name, each in shards.items()})
            folder = ShardFolder(
                root=root,
                names=tuple(shards),
                digests=tuple(shards.values()),
                cache=cache,
                max_bytes=int(self.max_cache_gb * 1e9),
            )
            splits: dict[str, Any] = {}
            for split in contents["splits"]:
                labels, blocks, starts, sizes = torch.from_numpy(table[split].astype(np.int64)).unbind(1)
                if bool(((labels < 0) | (labels >= len(names)) | (blocks < 0) | (blocks >= len(shards))).any()):
                    raise ValueError(f"{INDEX} names a class or a shard that is not in {CONTENTS}")
                splits[split] = Shards(
                    folder=folder,
                    labels=labels,
                    numbers=torch.arange(len(labels)),
                    blocks=blocks,
                    starts=starts,
                    sizes=sizes,
                    decoding=self._decoding,
                )
            held_out = {"val": 0.15, "test": 0.0}
            return DataSplits(location=root, class_names=names, **splits, held_out=held_out)
        except (*LOAD_ERRORS, zlib.error, HTTPException) as error:
            if isinstance(error, UserError):
                raise
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or first_line(error)
            raise UserError(f"data.root={self.root} holds no shards that can be read: {reason}") from error


def pack(
    splits: Mapping[str, Images],
    class_names: Sequence[str],
    folder: Path,
    *,
    shard_bytes: int,
    bit_depth: int | None,
) -> int:
    """Write images to shards; `contents.json` is written last, so that a folder that holds it is complete.

    The images of a split are shuffled, so that each shard holds all classes. Files are packed as they are, images in
    memory as PNG.

    Args:
        splits: the images of each split.
        class_names: the names of the labels.
        folder: where the shards are written.
        shard_bytes: about the size of a shard.
        bit_depth: of images with more than 8 bits a value, or None.

    Returns:
        The number of shards.

    Raises:
        UserError: the folder holds shards already, or a file is damaged.
        OSError: the folder cannot be written.
    """
    if (folder / CONTENTS).exists():
        raise UserError(f"{folder} holds shards already; choose another output")
    tables: dict[str, Any] = {}
    shards: dict[str, dict[str, str]] = {}
    for split, images in splits.items():
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist()
        shards[split] = {}
        rows: list[tuple[int, int, int, int]] = []
        waiting = iter(tracked(order, f"packing {split}"))
        number = next(waiting, None)
        while number is not None:
            name = f"{split}-{len(shards[split]):05d}.tar"
            with atomic_write(folder / name, sync=True) as out, tarfile.open(fileobj=out, mode="w") as tar:
                while number is not None and out.tell() < shard_bytes:
                    data, suffix = _encoded(images, number)
                    label = int(images.labels[number])
                    key = f"{len(rows):09d}"
                    rows.append((label, sum(map(len, shards.values())), out.tell() + tarfile.BLOCKSIZE, len(data)))
                    _add(tar, f"{key}{suffix}", data)
                    _add(tar, f"{key}.cls", str(label).encode())
                    number = next(waiting, None)
            with (folder / name).open("rb") as file:
                shards[split][name] = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        tables[split] = np.array(rows, dtype=np.int64).reshape(-1, 4)
    content = io.BytesIO()
    np.savez_compressed(content, **tables)
    write_file(folder / INDEX, content.getvalue())
    about = {
        "class_names": list(class_names),
        "bit_depth": bit_depth,
        "index": f"sha256:{hashlib.sha256(content.getvalue()).hexdigest()}",
        "splits": shards,
    }
    write_file(folder / CONTENTS, json.dumps(about, indent=1, ensure_ascii=False).encode())
    return sum(map(len, shards.values()))


def _encoded(images: Images, index: int) -> tuple[bytes, str]:
    """Return the bytes of an image's file and its extension."""
    if isinstance(images, Files):
        path = Path(images.paths[index])
        images.read(index, num_channels=3)  # a damaged file is an error now, and not in the middle of a training
        return path.read_bytes(), path.suffix.lower() or ".img"
    pixels = getattr(images, "pixels", None)
    channels = 3 if pixels is None else pixels.shape[1]
    return bytes(encode_png(images.read(index, num_channels=channels).contiguous()).numpy()), ".png"


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _read(root: str, name: str) -> bytes:
    if "://" in root:
        return read_url(f"{root}/{name}", max_bytes=_MAX_INDEX)
    return (Path(root) / name).read_bytes()


def _checked(digests: Mapping[str, Any]) -> dict[str, str]:
    """Return the hashes of shards, whose names must not lead out of the folder."""
    for name, digest in digests.items():
        if Path(name).name != name or not str(digest).startswith("sha256:") or len(str(digest)) != 71:
            raise ValueError(f"{CONTENTS} names {name!r}, which is no shard")
    return {str(name): str(digest) for name, digest in digests.items()}
