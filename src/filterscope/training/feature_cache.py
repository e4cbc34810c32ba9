"""Features of what rests: computed once for every image and view, in memory or mapped into it, and never stale."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from rich.progress import track
from torch import Tensor

from filterscope.data import (
    decode_cache,
    image_io,
    loader,
    preprocessing,
    sampler,
)
from filterscope.data.datamodule import ImageDataModule
from filterscope.errors import UserError
from filterscope.models import backbone, split_network
from filterscope.models.split_network import SplitNetwork
from filterscope.storage.disk_cache import build_once, cache_key, format_bytes, is_complete, read_metadata

KNOB = "features_cache"
_CODE = (decode_cache, image_io, loader, sampler, preprocessing, backbone, split_network)


class Features(NamedTuple):
    """What stands in a batch in the place of images: what the lower half made of them."""

    values: Tensor


class FeatureStore:
    """The features of all training images, `(N, …)` in the data's own order, in the type that the trunk puts out.

    Args:
        halves: the network; its lower half must not change while this is used.
        data: gives the images.
        compute: turns a batch of images into features, as the training would.
        how: plain data about `compute` (precision, layout): what else the features depend on.
        device: on which they are used; they lie there where it is a GPU with room for them.
        folder: in which features are kept for other runs too; None: in memory, for this run.
    """

    def __init__(
        self,
        halves: SplitNetwork,
        data: ImageDataModule,
        *,
        compute: Callable[[Tensor], Tensor],
        how: tuple[object, ...],
        device: torch.device | str = "cpu",
        folder: Path | None = None,
    ) -> None:
        self.split_network = halves
        self.data = data
        self.compute = compute
        self.device = torch.device(device)
        self.how = (*how, self.device.type)
        self.folder = folder
        self._views: dict[int | None, Tensor] = {}

    def view(self, view: int | None) -> Tensor:
        """Return the features of all training images in a view, None for the fixed one; computed when first asked."""
        if view not in self._views:
            values = self._read(view, self.folder) if self.folder else self._kept(view)
            near = self.device.type == "cuda" and 4 * values.nbytes < torch.cuda.mem_get_info(self.device)[0]
            self._views[view] = values.to(self.device) if near else values
        return self._views[view]

    def forget(self) -> None:
        """Let go of everything in memory."""
        self._views.clear()

    def key(self, view: int | None) -> str:
        """Return a name that changes with the weights, the data, the view, the precision and the code."""
        tensors = {
            id(tensor): tensor
            for module in self.split_network.trunk
            for tensor in (*module.parameters(), *module.buffers())
        }
        weights = [(tuple(each.shape), _bytes(each)) for each in tensors.values()]
        parts = [part for weight in weights for part in weight]
        shapes = [repr(module) for module in self.split_network.trunk]
        return cache_key([*parts, *shapes, self.how, self.data.identity("train", augmentation_epoch=view)], code=_CODE)

    def _read(self, view: int | None, folder: Path) -> Tensor:
        key = self.key(view)
        # One process alone writes what it computes at once; several have to put their parts together first.
        gathered = self._gathered(view) if _world() > 1 and not _agreed(is_complete(folder / key)) else None
        found = build_once(
            folder,
            key=key,
            num_bytes=self._needed(),
            option=KNOB,
            build=lambda place: self._write(place, self._batches(view) if gathered is None else iter([gathered])),
        )
        about = read_metadata(found)
        # Copy-on-write: torch takes no read-only arrays, and nobody writes.
        mapped = torch.from_numpy(np.memmap(found / "features.bin", dtype=np.uint8, mode="c"))
        return mapped.view(getattr(torch, about["dtype"])).view(about["shape"])

    def _write(self, folder: Path, parts: Iterator[Tensor]) -> dict[str, Any]:
        count, kind, shape = 0, "", []
        with (folder / "features.bin").open("wb") as file:
            for values in parts:
                file.write(_bytes(values))
                count, kind, shape = count + len(values), str(values.dtype), list(values.shape[1:])
        return {"shape": [count, *shape], "dtype": kind.removeprefix("torch.")}

    def _needed(self) -> int:
        """Return how many bytes the features of all images take."""
        one = self.compute(torch.zeros(1, self.data.num_channels, self.data.image_size, self.data.image_size))
        return len(self.data.labels("train")) * one.numel() * one.element_size()

    def _kept(self, view: int | None) -> Tensor:
        needed, free = self._needed(), free_memory()
        if 2 * needed > free:
            raise UserError(
                f"the features of the training images would take {format_bytes(needed)}, more than half of the "
                f"{format_bytes(free)} of memory that are free; {KNOB}=<folder> keeps them on disk"
            )
        return self._gathered(view)

    def _gathered(self, view: int | None) -> Tensor:
        """Return the features of all images, of which every process has computed its part."""
        total, world = len(self.data.labels("train")), _world()
        own = torch.cat(list(self._batches(view)))
        if world == 1:
            return own
        share = -(-total // world)
        padded = torch.cat([own, own[:1].expand(share - len(own), *own.shape[1:])]).contiguous()
        parts = [torch.empty_like(padded) for _ in range(world)]
        dist.all_gather(parts, padded)
        return torch.stack(parts, dim=1).flatten(0, 1)[:total]  # image i was process i % world's

    def _batches(self, view: int | None) -> Iterator[Tensor]:
        """Yield the features of this process's images, convolutional ones as `(N, H, W, C)`."""
        loader = self.data.ordered("train", augmentation_epoch=view)
        for images, _ in track(loader, description="features", transient=True):
            values = self.compute(images)
            yield values.movedim(1, -1).contiguous() if values.ndim == 4 else values


def free_memory() -> int:
    """Return how many bytes of memory are to be had; where nobody says, more than anybody has."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 1 << 60
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), 1 << 60)


def select_features(values: Tensor, batch: Tensor) -> Tensor:
    """Return the features of some images as the layer behind them takes them."""
    chosen = values[batch.to(values.device)]
    return chosen.movedim(-1, 1) if chosen.ndim == 4 else chosen


def _world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _agreed(answer: bool) -> bool:
    """Return the first process's answer on all of them."""
    answers = [answer]
    dist.broadcast_object_list(answers)
    return answers[0]


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy().tobytes()
