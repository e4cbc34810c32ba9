"""The base class of all data sets: options, splits, checks and loaders. A data set only lists its images."""

import hashlib
import logging
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from filterscope.data.decode_cache import CachedFiles, cache_files
from filterscope.data.image_io import MEGAPIXELS, Decoding, check_image, find_damaged, stored_bits
from filterscope.data.images import DataSplits, Files, Images, Pixels, joined
from filterscope.data.loader import ImageLoader, TransformedImages, identity_collate
from filterscope.data.preprocessing import Augmentation, RandomTransform, fixed_transform, to_float
from filterscope.data.sampler import EpochSampler, mix_seed
from filterscope.data.splits import check_trainable, prepare_splits, spread_over_classes
from filterscope.errors import UserError, printable
from filterscope.runtime.cores import available_cores

log = logging.getLogger(__name__)

Fraction = Annotated[float, Field(ge=0, lt=1)]
"""A fraction of the training images that is held out."""
ResizeRatio = Annotated[float, Field(ge=1)]

_SAMPLED = 200  # images whose values decide the bit depth


@dataclass(kw_only=True, eq=False, repr=False)
class ImageDataModule(pl.LightningDataModule, ABC):
    """Loaders of images, `(N, num_channels, image_size, image_size)` float32 in [0, 1], with int64 labels.

    All that is random follows from (seed, epoch, index), whatever the number of loader processes. Without a Trainer,
    set `epoch` before each epoch.

    Args:
        root: the folder below which the data lies.
        batch_size: images per batch.
        image_size: height and width of the images in pixels.
        num_channels: 1 (grey) or 3 (RGB).
        num_workers: loader processes; None: one for each core, at most 8, shared by the processes of a machine, and
            none where the images lie in memory.
        pin_memory: whether batches are copied to page-locked memory; None: if there is a GPU.
        seed: of the splits, the order and the augmentation.
        sampling: `uniform`: each training image once in an epoch; `balanced`: as many images, drawn with equal
            probability from each class.
        train_splits: which splits are trained on; `[train, val]` trains on the validation images too.
        exclude: names of classes to leave out.
        on_corrupt: `error` stops at a damaged file; `skip` decodes all files before training and leaves out the
            damaged ones.
        augment: the random changes of training images; None: training images get the same transform as the others.
        resize_ratio: the shorter side is resized to `image_size × resize_ratio` pixels, then the center is cropped.
        cache: a folder for decoded and resized images, shared by epochs and runs; None: no cache.
        bit_depth: of images with more than 8 bits a value: 2^bit_depth − 1 becomes white; None: the smallest of 8, 10,
            12, 14, 16, 24, 31 that holds a sample of the images; set by `setup` if it matters.
        max_megapixels: larger images are refused as possible decompression bombs.

    Attributes:
        batch_source: may be set to a function that gets a split's name and returns an iterator over batches to yield
            instead of the images, or None.
        class_names: the names of the labels, set by `setup`.
        location: where the images lie and what was taken for a split, set by `setup`.
        skipped: the damaged files that were left out, set by `setup`.
    """

    root: str = "data"
    batch_size: PositiveInt = 64
    image_size: PositiveInt = 224
    num_channels: Literal[1, 3] = 3
    num_workers: NonNegativeInt | None = None
    pin_memory: bool | None = None
    seed: NonNegativeInt = 0
    sampling: Literal["uniform", "balanced"] = "uniform"
    train_splits: Sequence[Literal["train", "val"]] = ("train",)
    exclude: Sequence[str | int] = ()
    on_corrupt: Literal["error", "skip"] = "error"
    augment: Augmentation | None = None
    resize_ratio: ResizeRatio = 1.0
    cache: str | None = None
    bit_depth: Annotated[int, Field(ge=8, le=32)] | None = None
    max_megapixels: PositiveFloat = MEGAPIXELS

    def __post_init__(self) -> None:
        super().__init__()
        if "train" not in self.train_splits:
            raise UserError(f"data.train_splits={list(self.train_splits)}: must be [train] or [train, val]")
        if not self.root.strip():
            raise UserError("data.root is empty; it must be a folder")
        self._fixed_transform = fixed_transform(image_size=self.image_size, resize_ratio=self.resize_ratio)
        self._splits: dict[str, Images] = {}
        self._unlabelled_reason = ""
        self._for_training = False
        self._epoch = 0
        self.batch_source: Callable[[str], Iterator[Any] | None] | None = None
        self.class_names: tuple[str, ...] = ()
        self.location = ""
        self.skipped: tuple[str, ...] = ()

    @abstractmethod
    def find(self) -> DataSplits:
        """List the images of the data set without decoding them.

        Raises:
            UserError: they are missing or incomplete.
        """

    @property
    def folder(self) -> Path:
        """`root` as a path."""
        try:
            return Path(self.root).expanduser()
        except RuntimeError as error:
            raise UserError(f"data.root={self.root}: there is no such user") from error

    @property
    def epoch(self) -> int:
        """The epoch for which training images are read: the Trainer's, otherwise the one that was set."""
        trainer = cast(Any, self.trainer)
        if trainer is None:
            return self._epoch
        # Lightning makes the first iterator before any hook of the epoch runs, and `current_epoch` lags on resume.
        return 0 if trainer.overfit_batches else int(trainer.fit_loop.epoch_progress.current.processed)

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch = epoch

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def trains_on_val(self) -> bool:
        """Whether the validation images are trained on too, so that only the test images measure anything."""
        return "val" in self.train_splits

    @property
    def has_test(self) -> bool:
        """Whether there is a test split."""
        return "test" in self._splits

    def setup(self, stage: str | None = None) -> None:
        """Find, check and split the images, and build the cache.

        For the stage `predict`, in which nothing is trained, the images need no labels, and a class may have one image.

        Raises:
            UserError: the data is missing, damaged, without labels, or does not fit the options.
        """
        training = stage != "predict"
        if not self._splits or (training and not self._for_training):
            self.prepare_data()
            found = self.find()
            exclude = [str(name) for name in self.exclude]
            names, splits = prepare_splits(found, exclude=exclude, seed=self.seed, training=training)
            if self.on_corrupt == "skip":
                splits = self._without_damaged(splits)
            if self.skipped:
                log.warning("left out %d damaged files, the first: %s", len(self.skipped), printable(self.skipped[0]))
                if training:
                    check_trainable(splits, names, location=found.location)
            self._splits = self._with_bit_depth(splits)
            if self.trains_on_val and training:
                self._splits["train"] = joined(self._splits["train"], self._splits["val"])
            if self.cache is not None:
                self._splits = cache_files(
                    self._splits,
                    Path(self.cache).expanduser(),
                    side=round(self.image_size * self.resize_ratio),
                    num_channels=self.num_channels,
                    num_workers=max(map(self._num_workers, self._splits.values())),
                )
            self.class_names, self._unlabelled_reason = _printable_names(names), found.unlabelled_reason
            self.location, self._for_training = found.location, training
        if self._unlabelled_reason and training:
            raise UserError(self._unlabelled_reason)

    def describe(self) -> str:
        """Return the number of images in each split and of classes, and the smallest class, as text."""
        ordered = [split for split in ("train", "val", "test") if split in self._splits]
        counts = ", ".join(f"{split} {len(self._splits[split])}" for split in ordered)
        per_class = torch.bincount(self.labels("train"), minlength=self.num_classes)
        smallest = int(per_class.argmin())
        return (
            f"{counts} images in {self.num_classes} classes; "
            f"smallest class {self.class_names[smallest]!r}: {int(per_class[smallest])}"
        )

    def fingerprint(self) -> dict[str, list[int | str]]:
        """Return the number of images of each split, and a hash of their keys, sizes and labels in their order."""
        return {split: [len(images), _hash(images)] for split, images in self._splits.items()}

    def train_dataloader(self) -> ImageLoader:
        """Return a loader of the augmented training images in random order."""
        return self._loader("train", shuffle=True, augmented=True)

    def val_dataloader(self) -> ImageLoader:
        """Return a loader of the validation images in their own order, not augmented."""
        return self._loader("val")

    def test_dataloader(self) -> ImageLoader:
        """Return a loader of the test images in their own order, not augmented.

        Raises:
            UserError: there is no test split.
        """
        return self._loader("test")

    @property
    def splits(self) -> Mapping[str, Images]:
        """The images of each split, set by `setup`."""
        return self._splits

    def labels(self, split: str) -> Tensor:
        """Return the labels of a split's images in their own order, int64 `(N,)`."""
        return self._images(split).labels

    def class_weights(self) -> Tensor:
        """Return one weight per class, inverse to its number of training images and 1 on average over the images."""
        counts = torch.bincount(self.labels("train"), minlength=self.num_classes)
        return counts.sum() / (len(counts) * counts)

    def ordered(self, split: str, *, augmentation_epoch: int | None) -> ImageLoader:
        """Return a loader of a split's images in their own order, each once over all processes.

        Args:
            split: `train`, `val` or `test`.
            augmentation_epoch: an epoch, whose augmentation the images get; None: no augmentation.
        """
        return self._loader(split, augmented=augmentation_epoch is not None, epoch=lambda: augmentation_epoch or 0)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Convert images to float32 in [0, 1] on the device, to which they come as uint8."""
        images, labels = batch
        uint8 = isinstance(images, Tensor) and images.dtype == torch.uint8
        return (to_float(images), labels) if uint8 else batch

    def identity(self, split: str, *, augmentation_epoch: int | None) -> list[object]:
        """Return plain data that changes if anything in the batches of `ordered` changes, for cache keys."""
        options: list[object] = [self.image_size, self.num_channels, self.resize_ratio, self.cache is not None]
        if augmentation_epoch is not None:
            options += [repr(self.augment), self.seed, augmentation_epoch]
        return [*options, *self._images(split).identity()]

    def examples(self, count: int, seed: int = 0) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        """Return the same validation images at each call, spread evenly over the classes and not augmented.

        Args:
            count: the largest number of images.
            seed: decides which images.

        Returns:
            Images, `(N, C, H, W)` float32 in [0, 1], their labels, int64 `(N,)`, and their names.
        """
        images = self._images("val")
        chosen = spread_over_classes(images.labels, count, seed=mix_seed(self.seed, seed))
        return self.read("val", chosen.tolist()), images.labels[chosen], tuple(map(images.name, chosen.tolist()))

    def read(self, split: str, indices: Sequence[int]) -> Tensor:
        """Return images of a split, `(N, C, H, W)` float32 in [0, 1], not augmented."""
        images = self._images(split)
        pixels = [self._fixed_transform(images.read(index, num_channels=self.num_channels)) for index in indices]
        nothing = torch.empty(0, self.num_channels, self.image_size, self.image_size)
        return to_float(torch.stack(pixels)) if pixels else nothing

    def _num_seen(self) -> int:
        """Return how many images of the epoch were trained on before an interruption."""
        loop = cast(Any, self.trainer).fit_loop if self.trainer else None
        if loop is None or not loop.restarting:
            return 0
        return self.batch_size * int(loop.epoch_loop.batch_progress.current.ready)

    def _images(self, split: str) -> Images:
        self.setup("predict")
        if split not in self._splits:
            raise UserError(f"the data has no {split} split; it has {', '.join(self._splits)}")
        return self._splits[split]

    def _without_damaged(self, splits: Mapping[str, Images]) -> dict[str, Images]:
        """Decode all files and leave out the damaged ones."""
        kept, skipped = dict(splits), []
        for split, images in splits.items():
            if not isinstance(images, Files):
                continue
            errors = find_damaged(images.paths, num_workers=self._num_workers(images), decoding=self._decoding)
            for error in filter(None, errors):
                log.warning("left out: %s (%s)", printable(error.path), error.reason)
                skipped.append(error.path)
            sound = torch.tensor([index for index, error in enumerate(errors) if error is None], dtype=torch.int64)
            kept[split] = images.select(sound, images.labels[sound])
        self.skipped = tuple(skipped)
        return kept

    def _with_bit_depth(self, splits: Mapping[str, Images]) -> dict[str, Images]:
        """Check the headers of all files, and return images that are decoded with one bit depth."""
        files = {split: images for split, images in splits.items() if isinstance(images, Files)}
        deep = [path for images in files.values() for path in images.paths if check_image(path, self._decoding)]
        if deep and self.bit_depth is None:
            self.bit_depth = max(map(stored_bits, deep[:: -(-len(deep) // _SAMPLED)]))
            log.info("%d images have more than 8 bits a value; their white is 2^%d − 1 (data.bit_depth=%d)",
                len(deep), self.bit_depth, self.bit_depth)  # fmt: skip
        return {**splits, **{split: replace(images, decoding=self._decoding) for split, images in files.items()}}

    @property
    def _decoding(self) -> Decoding:
        return Decoding(bit_depth=self.bit_depth, max_megapixels=self.max_megapixels)

    def _num_workers(self, images: Images) -> int:
        if self.num_workers is not None:
            return self.num_workers
        # Without a GPU the processor is busy with training, and loader processes would cost more than they gain where
        # nothing has to be decoded.
        if isinstance(images, Pixels) or (isinstance(images, CachedFiles) and not torch.cuda.is_available()):
            return 0
        processes = self.trainer.num_devices if self.trainer else 1
        return min(max(available_cores() // processes, 1), 8)

    def _loader(
        self, split: str, *, shuffle: bool = False, augmented: bool = False, epoch: Callable[[], int] | None = None
    ) -> ImageLoader:
        images = self._images(split)
        rank, world_size = _rank_and_world_size()
        if world_size > len(images):
            raise UserError(f"{world_size} processes are more than the {len(images)} images of the {split} split")
        augment = self.augment if augmented else None
        random_transform = augment and RandomTransform(
            augment=augment, image_size=self.image_size, resize_ratio=self.resize_ratio, seed=self.seed
        )
        sampler = EpochSampler(
            len(images),
            epoch=epoch or (lambda: self.epoch),
            seed=self.seed,
            shuffle=shuffle,
            weights=self.class_weights()[images.labels] if shuffle and self.sampling == "balanced" else None,
            rank=rank,
            world_size=world_size,
            num_seen=self._num_seen if shuffle else int,
            blocks=getattr(images, "blocks", None),
        )
        num_workers = self._num_workers(images)
        transform = random_transform or self._fixed_transform
        loader = ImageLoader(
            TransformedImages(images=images, transform=transform, num_channels=self.num_channels),
            sampler=sampler,
            batch_size=self.batch_size,
            # Batch norm cannot train on a batch of one.
            drop_last=shuffle and len(sampler) > self.batch_size and len(sampler) % self.batch_size == 1,
            collate_fn=identity_collate,
            num_workers=num_workers,
            persistent_workers=num_workers > 0 and split != "test" and epoch is None,
            pin_memory=torch.cuda.is_available() if self.pin_memory is None else self.pin_memory,
            # Without its own generator each epoch would draw a seed from the global one and so change it.
            generator=torch.Generator(),
        )
        loader.uint8 = self.trainer is not None and epoch is None
        if epoch is None:
            loader.batch_source = lambda: self.batch_source(split) if self.batch_source else None
        return loader


def _rank_and_world_size() -> tuple[int, int]:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return 0, 1


def _printable_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return names that can be shown, and that still differ where long ones are shortened."""
    shown = list(map(printable, names))
    counts = Counter(shown)
    return tuple(f"{name} ({label})" if counts[name] > 1 else name for label, name in enumerate(shown))


def _hash(images: Images) -> str:
    digest = hashlib.sha256(images.labels.numpy().tobytes())
    sizes = [os.stat(path).st_size for path in images.paths] if isinstance(images, Files) else [0] * len(images)  # noqa: PTH116
    for index, size in enumerate(sizes):
        digest.update(f"{size} {images.key(index)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()
