"""What all sets share: knobs, splits, checks, views and loaders; a set only says what it consists of."""

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor

from filterscope.data.augmentation import RandomView
from filterscope.data.decode_cache import CachedFiles, cached
from filterscope.data.file_checks import check_headers, leave_out_damaged
from filterscope.data.images import DataSplits, Files, Images
from filterscope.data.loader import ImageLoader, ViewedImages, identity_collate
from filterscope.data.preprocessing import Augmentation, fixed_view, to_float
from filterscope.data.sampler import EpochSampler, mix_seed
from filterscope.data.split_preparation import check_trainable, prepare
from filterscope.data.splits import spread
from filterscope.errors import UserError

log = logging.getLogger(__name__)


@dataclass(kw_only=True, eq=False, repr=False)
class ImageDataModule(pl.LightningDataModule, ABC):
    """Loaders over a set of images, `(N, num_channels, image_size, image_size)` float32 in [0, 1] with int64 labels.

    Whoever trains sets `epoch` before each epoch; what is random follows from (seed, epoch, index) alone, whatever the
    number of workers. `instead` may be set to a function that says what a pass over a split yields instead of its
    images, or None. `setup` fills `class_names`, `has_test` and `skipped`, the damaged files that were left out.

    `root` is the folder below which the data lies. `num_workers` None means one for each core, at most 8, shared by
    the processes of a machine, and none where the images lie in memory; `pin_memory` None means where there is a GPU.
    `exclude` names classes to leave out. `on_corrupt="error"` stops at a damaged file; `"skip"` decodes all files
    before training and leaves such ones out. `augment` None trains on the fixed view, which makes the shorter side
    `image_size × resize_ratio` pixels long and cuts out the middle. `cache` is a folder in which files are kept
    decoded, that long on their shorter side, from the first run on.
    """

    root: str = "data"
    batch_size: int = 64
    image_size: int = 224
    num_channels: int = 3
    num_workers: int | None = None
    pin_memory: bool | None = None
    seed: int = 0
    exclude: Sequence[str | int] = ()
    on_corrupt: Literal["error", "skip"] = "error"
    augment: Augmentation | None = None
    resize_ratio: float = 1.0
    cache: str | None = None

    def __post_init__(self) -> None:
        super().__init__()
        for name, least in (("batch_size", 1), ("image_size", 1), ("num_workers", 0), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"data.{name}={value}: must be at least {least}")
        if self.num_channels not in (1, 3):
            raise UserError(f"data.num_channels={self.num_channels}: images have 1 or 3 channels")
        self._fixed_view = fixed_view(image_size=self.image_size, resize_ratio=self.resize_ratio)
        self._splits: dict[str, Images] = {}
        self._unlabelled = ""
        self._epoch = 0
        self.repeat_epoch = False
        self.instead: Callable[[str], Iterator[Any] | None] | None = None
        self.class_names: tuple[str, ...] = ()
        self.skipped: tuple[str, ...] = ()

    @abstractmethod
    def find(self) -> DataSplits:
        """Say what the set consists of; nothing is decoded yet.

        Raises:
            UserError: it is not where it should be.
        """

    @property
    def folder(self) -> Path:
        """`root` as a path."""
        return Path(self.root).expanduser()

    @property
    def epoch(self) -> int:
        """The epoch that the training images are read for; a trainer at work knows it, else it is what was set."""
        if self.repeat_epoch:
            return 0
        # Lightning makes the first iterator before any hook of the epoch runs, and `current_epoch` lags on resume.
        return int(cast(Any, self.trainer).fit_loop.epoch_progress.current.processed) if self.trainer else self._epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch = epoch

    @property
    def num_classes(self) -> int:
        """How many classes there are to tell apart."""
        return len(self.class_names)

    @property
    def has_test(self) -> bool:
        """Whether there is a test split."""
        return "test" in self._splits

    def setup(self, stage: str | None = None) -> None:
        """Find, leave out, split and check the images; the stage `predict` only looks, and needs no labels.

        Raises:
            UserError: the data is missing, damaged, without labels, or does not fit the knobs.
        """
        if not self._splits:
            self.prepare_data()
            found = self.find()
            names, splits = prepare(found, exclude=[str(name) for name in self.exclude], seed=self.seed)
            self._splits = {split: self._checked(images) for split, images in splits.items()}
            if self.skipped:
                log.warning("left out %d damaged files, the first: %s", len(self.skipped), self.skipped[0])
                check_trainable(self._splits, names, place=found.place)
            if self.cache is not None:
                self._splits = self._cached(self._splits, Path(self.cache).expanduser())
            self.class_names, self._unlabelled = names, found.unlabelled
        if self._unlabelled and stage != "predict":
            raise UserError(self._unlabelled)

    def train_dataloader(self) -> ImageLoader:
        """Return the training images in a random order, in their random view."""
        return self._loader("train", shuffle=True, random=True)

    def val_dataloader(self) -> ImageLoader:
        """Return the validation images in their fixed order and view."""
        return self._loader("val")

    def test_dataloader(self) -> ImageLoader:
        """Return the test images in their fixed order and view.

        Raises:
            UserError: there is no test split.
        """
        return self._loader("test")

    def labels(self, split: str) -> Tensor:
        """Return the labels of all images of a split, int64 `(N,)`, in their own order."""
        return self._images(split).labels

    def ordered(self, split: str, *, view: int | None) -> ImageLoader:
        """Return the images of a split in their own order, each once over all processes.

        They are shown in the random view that they would have in epoch `view`, or for None in their fixed view.
        """
        return self._loader(split, shuffle=False, random=view is not None, epoch=lambda: view or 0)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Make images float32 in [0, 1] on the device: they come as uint8."""
        del dataloader_idx
        images, labels = batch
        uint8 = isinstance(images, Tensor) and images.dtype == torch.uint8
        return (to_float(images), labels) if uint8 else batch

    def identity(self, split: str, *, view: int | None) -> list[object]:
        """Return plain data that changes with any image of a split, their order, or how `view` shows them."""
        shown: list[object] = [self.image_size, self.num_channels, self.resize_ratio, self.cache is not None]
        if view is not None:
            shown += [repr(self.augment), self.seed, view]
        return [*shown, *self._images(split).identity()]

    def examples(self, count: int, seed: int = 0) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        """Return the same validation images each time: float32 in [0, 1], labels, and what they are called.

        They are spread over the classes (`filterscope.data.splits.spread`) and in their fixed view.
        """
        images = self._images("val")
        chosen = spread(images.labels, count, seed=mix_seed(self.seed, seed))
        pixels = [self._fixed_view(images.read(i, num_channels=self.num_channels)) for i in chosen.tolist()]
        batch = torch.stack(pixels) if pixels else torch.empty(0, self.num_channels, self.image_size, self.image_size)
        return to_float(batch), images.labels[chosen], tuple(images.name(i) for i in chosen.tolist())

    def _batches_behind(self) -> int:
        """Return how many batches of the epoch were trained on before an interruption."""
        loop = cast(Any, self.trainer).fit_loop if self.trainer else None
        return int(loop.epoch_loop.batch_progress.current.ready) if loop is not None and loop.restarting else 0

    def _images(self, split: str) -> Images:
        self.setup("predict")
        if split not in self._splits:
            raise UserError(f"the data has no {split} split; it has {', '.join(self._splits)}")
        return self._splits[split]

    def _checked(self, images: Images) -> Images:
        if not isinstance(images, Files):
            return images
        if self.on_corrupt == "error":
            check_headers(images)
            return images
        sound, faults = leave_out_damaged(images, num_workers=self._num_workers(images))
        for fault in faults:
            log.warning("left out: %s (%s)", fault.path, fault.reason)
        self.skipped += tuple(fault.path for fault in faults)
        return sound

    def _cached(self, splits: dict[str, Images], place: Path) -> dict[str, Images]:
        return cached(
            splits,
            place,
            side=round(self.image_size * self.resize_ratio),
            num_channels=self.num_channels,
            num_workers=max(map(self._num_workers, splits.values())),
        )

    def _num_workers(self, images: Images) -> int:
        if self.num_workers is not None:
            return self.num_workers
        # Without a GPU the processor trains meanwhile, and views of decoded images cost it less than loaders would.
        if not isinstance(images, Files) and not (isinstance(images, CachedFiles) and torch.cuda.is_available()):
            return 0
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        processes = self.trainer.num_devices if self.trainer else 1
        return min(max(cores // processes, 1), 8)

    def _loader(
        self, split: str, *, shuffle: bool = False, random: bool = False, epoch: Callable[[], int] | None = None
    ) -> ImageLoader:
        images = self._images(split)
        rank, world = _place()
        if world > len(images):
            raise UserError(f"{world} processes are more than the {len(images)} images of the {split} split")
        augment = self.augment if random else None
        random_view = augment and RandomView(
            augment=augment, image_size=self.image_size, resize_ratio=self.resize_ratio, seed=self.seed
        )
        sampler = EpochSampler(
            len(images),
            epoch=epoch or (lambda: self.epoch),
            seed=self.seed,
            shuffle=shuffle,
            rank=rank,
            world=world,
            behind=(lambda: self.batch_size * self._batches_behind()) if shuffle else int,
        )
        num_workers = self._num_workers(images)
        loader = ImageLoader(
            ViewedImages(images=images, view=random_view or self._fixed_view, num_channels=self.num_channels),
            sampler=sampler,
            batch_size=self.batch_size,
            # Batch norm cannot train on a batch of one.
            drop_last=shuffle and len(sampler) > self.batch_size and len(sampler) % self.batch_size == 1,
            collate_fn=identity_collate,
            num_workers=num_workers,
            persistent_workers=num_workers > 0 and split != "test" and epoch is None,
            pin_memory=torch.cuda.is_available() if self.pin_memory is None else self.pin_memory,
            # One of its own, or each pass would take a seed from the global generator and change it.
            generator=torch.Generator(),
        )
        loader.raw = self.trainer is not None and epoch is None
        if epoch is None:
            loader.instead = lambda: self.instead(split) if self.instead else None
        return loader


def _place() -> tuple[int, int]:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return 0, 1
