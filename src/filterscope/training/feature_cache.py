"""Cached features: the frozen trunk runs once per image, and the head is trained on its outputs."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor

from filterscope.data import decode_cache, image_io, loader, preprocessing, sampler
from filterscope.data.datamodule import ImageDataModule
from filterscope.errors import UserError
from filterscope.models import backbone, heads, split_network
from filterscope.models.split_network import SplitNetwork, split_at
from filterscope.runtime.processes import world_size
from filterscope.runtime.terminal import tracked
from filterscope.storage.disk_cache import build_once, cache_key, format_bytes, is_complete, read_metadata, tensor_bytes
from filterscope.training.metrics_log import find_callback
from filterscope.training.module import Features, FinetuneModule

log = logging.getLogger(__name__)

OPTION = "feature_cache"
_CODE = (decode_cache, image_io, loader, sampler, preprocessing, backbone, heads, split_network)


class FeatureCache(pl.Callback):
    """Lets the loaders yield cached features instead of images in epochs in which the policy freezes the trunk.

    Training images are cached if their augmentation is known (`cached_augmentations` of the policy), validation images
    from the first pass over them. The trunk runs on images as long as anything listens to its modules with hooks.

    Args:
        folder: where features are kept for later runs; None: in memory, for this run.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        super().__init__()
        self.folder = None if folder is None else Path(folder).expanduser() / "features"
        self.split_network: SplitNetwork | None = None
        self.store: FeatureStore | None = None
        self.validation: list[tuple[Features, Tensor]] = []
        self._validation_complete = False
        self._data: ImageDataModule | None = None
        self._asked = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Split the network at the last frozen layer and let the datamodule ask for features."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if self._asked or not isinstance(pl_module, FinetuneModule) or not isinstance(data, ImageDataModule):
            return
        self._asked = True
        if not pl_module.policy.freezes_trunk(0):
            return
        self.split_network = split_at(pl_module.classifier, pl_module.policy.last_frozen_layer(pl_module.classifier))
        pl_module.split_network = self.split_network
        if self.split_network is None:
            log.info("no features are cached: later layers use more than the output of the last frozen layer")
            return
        if pl_module.mix is not None and getattr(pl_module.policy, "cached_augmentations", None) is not None:
            log.info("no features of training images are cached: mixed images (mix=…) are new in every epoch")
        self._data = data
        data.batch_source = lambda split: self._batches(trainer, split)
        self.store = self.store_of(self.split_network, trainer, pl_module, data)

    def store_of(
        self, network: SplitNetwork, trainer: pl.Trainer, module: FinetuneModule, data: ImageDataModule
    ) -> "FeatureStore":
        """Return a store of the features of a split network, kept where the run keeps features."""
        return FeatureStore(
            network,
            data,
            compute=module.trunk_function(network),
            computed_with=(str(trainer.precision), module.channels_last),
            device=module.device,
            folder=self.folder,
        )

    def features(self, module: FinetuneModule) -> Tensor | None:
        """Return the features of all training images for this epoch, or None if the epoch needs the images."""
        if self.store is None or module.mix is not None or not module.policy.freezes_trunk(module.epoch):
            return None
        cached: int | None = getattr(module.policy, "cached_augmentations", None)
        if self.store.data.augment is None or cached == 0:
            return self.store.features(None)
        return None if cached is None else self.store.features(module.epoch % cached)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Free the features once the trunk is trained."""
        if self.store is not None and not self._is_frozen(trainer, pl_module):
            self.store.clear()
            self.validation.clear()
        if not self._validation_complete:
            self.validation.clear()

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Cache the features of a validation batch."""
        if not self._validation_complete and outputs is not None and self._is_frozen(trainer, pl_module):
            self.validation.append((Features(outputs.detach()), batch[1]))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note that the features of all validation images are cached."""
        complete = bool(self.validation) and self._is_frozen(trainer, pl_module)
        self._validation_complete = complete and not trainer.sanity_checking

    def _is_frozen(self, trainer: pl.Trainer, module: pl.LightningModule) -> bool:
        if self.split_network is None or not isinstance(module, FinetuneModule):
            return False
        return module.policy.freezes_trunk(0 if trainer.state.fn == "validate" else module.epoch)

    def _batches(self, trainer: pl.Trainer, split: str) -> Iterator[tuple[Features, Tensor]] | None:
        """Return what a pass over a split yields instead of images, or None."""
        module = trainer.lightning_module
        if not isinstance(module, FinetuneModule):
            return None
        if split == "train":
            features = self.features(module)
            return None if features is None else self._training_batches(features)
        usable = split == "val" and self._validation_complete and self._is_frozen(trainer, module)
        return iter(self.validation) if usable and not (self.split_network and self.split_network.watched) else None

    def _training_batches(self, features: Tensor) -> Iterator[tuple[Features, Tensor]]:
        assert self._data is not None
        labels = self._data.labels("train")
        batches: Any = self._data.train_dataloader().batch_sampler  # as the DataLoader reads them, after a resume too
        for keys in batches:
            indices = torch.tensor([index for _, index in keys])
            yield Features(select_features(features, indices)), labels[indices]


def backbone_features(trainer: pl.Trainer, module: FinetuneModule, data: ImageDataModule) -> "FeatureStore":
    """Return the store of the whole backbone's features, that of the run's `FeatureCache` if it has one."""
    cache = find_callback(trainer, FeatureCache) or FeatureCache()
    if cache.store is not None and cache.store.network.layer is module.classifier.backbone:
        return cache.store
    network = split_at(module.classifier)
    assert network is not None
    return cache.store_of(network, trainer, module, data)


class FeatureStore:
    """The features of all training images, `(N, …)` in the order of the data and in the data type of the trunk.

    Args:
        network: the split network; its trunk must not change while this is used.
        data: the images.
        compute: turns a batch of images into features, exactly as training does.
        computed_with: plain data on which the features depend too (precision, memory layout).
        device: where the features are used; they are stored there if it is a GPU with enough room.
        folder: where features are kept for other runs; None: in memory, for this run.
    """

    def __init__(
        self,
        network: SplitNetwork,
        data: ImageDataModule,
        *,
        compute: Callable[[Tensor], Tensor],
        computed_with: tuple[object, ...],
        device: torch.device | str = "cpu",
        folder: Path | None = None,
    ) -> None:
        self.network = network
        self.data = data
        self.compute = compute
        self.device = torch.device(device)
        self.computed_with = (*computed_with, self.device.type)
        self.folder = folder
        self._cached: dict[int | None, Tensor] = {}

    def features(self, augmentation: int | None) -> Tensor:
        """Return the features of all training images; they are computed on the first call.

        Args:
            augmentation: the number of the random augmentation, or None for images without any.
        """
        if augmentation not in self._cached:
            values = self._read(augmentation, self.folder) if self.folder else self._in_memory(augmentation)
            on_gpu = self.device.type == "cuda" and 4 * values.nbytes < torch.cuda.mem_get_info(self.device)[0]
            self._cached[augmentation] = values.to(self.device) if on_gpu else values
        return self._cached[augmentation]

    def clear(self) -> None:
        """Free the memory of all features."""
        self._cached.clear()

    def key(self, augmentation: int | None) -> str:
        """Return a hash of the weights, the images, their augmentation, the precision and the code."""
        tensors = {
            id(tensor): tensor for module in self.network.trunk for tensor in (*module.parameters(), *module.buffers())
        }
        weights = [part for tensor in tensors.values() for part in (tuple(tensor.shape), tensor_bytes(tensor))]
        modules = [repr(module) for module in self.network.trunk]
        images = self.data.identity("train", augmentation_epoch=augmentation)
        return cache_key([*weights, *modules, self.computed_with, images], code=_CODE)

    def _read(self, augmentation: int | None, folder: Path) -> Tensor:
        key = self.key(augmentation)
        # A single process writes batches as it computes them; several must gather their parts first.
        gathered = self._gathered(augmentation) if world_size() > 1 and not _agreed(is_complete(folder / key)) else None
        found = build_once(
            folder,
            key=key,
            num_bytes=self._num_bytes(),
            option=OPTION,
            build=lambda new: self._write(new, self._batches(augmentation) if gathered is None else iter([gathered])),
        )
        about = read_metadata(found)
        # Copy-on-write, because torch warns about read-only arrays.
        mapped = torch.from_numpy(np.memmap(found / "features.bin", dtype=np.uint8, mode="c"))
        return mapped.view(getattr(torch, about["dtype"])).view(about["shape"])

    def _write(self, folder: Path, parts: Iterator[Tensor]) -> dict[str, Any]:
        count, dtype, shape = 0, "", []
        with (folder / "features.bin").open("wb") as file:
            for values in parts:
                file.write(tensor_bytes(values))
                count, dtype, shape = count + len(values), str(values.dtype), list(values.shape[1:])
        return {"shape": [count, *shape], "dtype": dtype.removeprefix("torch.")}

    def _num_bytes(self) -> int:
        one = self.compute(torch.zeros(1, self.data.num_channels, self.data.image_size, self.data.image_size))
        return len(self.data.labels("train")) * one.numel() * one.element_size()

    def _in_memory(self, augmentation: int | None) -> Tensor:
        needed, free = self._num_bytes(), free_memory()
        if 2 * needed > free:
            raise UserError(
                f"the features of the training images need {format_bytes(needed)}, more than half of the "
                f"{format_bytes(free)} of free memory; {OPTION}=<folder> keeps them on disk"
            )
        return self._gathered(augmentation)

    def _gathered(self, augmentation: int | None) -> Tensor:
        """Return the features of all images; each process computes its share."""
        total, world = len(self.data.labels("train")), world_size()
        own = torch.cat(list(self._batches(augmentation)))
        if world == 1:
            return own
        share = -(-total // world)
        padded = torch.cat([own, own[:1].expand(share - len(own), *own.shape[1:])]).contiguous()
        parts = [torch.empty_like(padded) for _ in range(world)]
        dist.all_gather(parts, padded)
        return torch.stack(parts, dim=1).flatten(0, 1)[:total]  # process r computed images r, r + world, …

    def _batches(self, augmentation: int | None) -> Iterator[Tensor]:
        """Yield the features of this process's images, convolutional ones as `(N, H, W, C)`."""
        batches = self.data.ordered("train", augmentation_epoch=augmentation)
        for images, _ in tracked(batches, "features"):
            values = self.compute(images)
            yield values.movedim(1, -1).contiguous() if values.ndim == 4 else values


def free_memory() -> int:
    """Return the bytes of available memory, or 2⁶⁰ where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 1 << 60
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), 1 << 60)


def select_features(values: Tensor, indices: Tensor) -> Tensor:
    """Return the features of some images as the next layer takes them, `(N, C, H, W)` or `(N, C)`."""
    chosen = values[indices.to(values.device)]
    return chosen.movedim(-1, 1) if chosen.ndim == 4 else chosen


def _agreed(answer: bool) -> bool:
    """Return the first process's answer in all of them."""
    answers = [answer]
    dist.broadcast_object_list(answers)
    return answers[0]
