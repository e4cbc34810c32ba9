"""The loader: uint8 batches from the workers, float32 images in [0, 1] out of it, and a worker's fault in one line."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from filterscope.data.decoding import BadImageError
from filterscope.data.sampling import Key, mixed_seed
from filterscope.data.sources import Images
from filterscope.data.transforms import View, to_float
from filterscope.errors import UserError

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class ViewedImages(Dataset[Batch]):
    """Images as the network is shown them; if `random`, chance follows from (seed, epoch, index) alone."""

    images: Images
    view: View
    num_channels: int
    seed: int
    random: bool

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> Batch:
        """Return one image, `(C, H, W)` uint8, and its label."""
        epoch, index = key
        image = self.images.read(index, num_channels=self.num_channels)
        if self.random:
            with torch.random.fork_rng(devices=[]):
                # Not torch.manual_seed: before CUDA starts, that keeps a note of every call for ever.
                torch.default_generator.manual_seed(mixed_seed(self.seed, epoch, index))
                image = self.view(image)
        else:
            image = self.view(image)
        return image, self.images.labels[index]

    def __getitems__(self, keys: Sequence[Key]) -> Batch | BadImageError:
        """Return a batch, `(N, C, H, W)` uint8 and `(N,)` int64; a bad file is handed over, not raised in a worker."""
        try:
            images, labels = zip(*(self[key] for key in keys), strict=True)
        except BadImageError as error:
            return error
        return torch.stack(images), torch.stack(labels)


class ImageLoader(DataLoader[Batch]):
    """A DataLoader over `ViewedImages` that yields `(N, C, H, W)` float32 in [0, 1] and `(N,)` int64.

    Raises:
        UserError: while it is read, a file turned out to be damaged or a worker died.
    """

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        try:
            for batch in super().__iter__():
                if isinstance(batch, BadImageError):
                    raise batch
                images, labels = batch
                yield to_float(images), labels
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise UserError(
                f"a loader process died ({str(error).splitlines()[0]}), mostly for want of memory; "
                "try a smaller data.num_workers or data.batch_size"
            ) from error


def as_it_is(batch: Any) -> Any:
    """Return the batch, which `ViewedImages` already put together."""
    return batch
