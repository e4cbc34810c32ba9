"""The loader: uint8 batches from the workers, float32 images in [0, 1] out of it, and a worker's fault in one line."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from filterscope.data.augmentation import RandomView, empty_batch
from filterscope.data.image_io import BadImageError
from filterscope.data.images import Images
from filterscope.data.preprocessing import View, to_float
from filterscope.data.sampler import Key
from filterscope.errors import UserError

Batch = tuple[Tensor, Tensor]

_TOLD_WITHIN = 1.0  # seconds after a process died


@dataclass(frozen=True, kw_only=True)
class ViewedImages(Dataset[Batch]):
    """Images as the network is shown them: in their fixed view, or at random, anew in every epoch."""

    images: Images
    view: View | RandomView
    num_channels: int

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, keys: Sequence[Key]) -> Batch | BadImageError:
        """Return a batch, `(N, C, H, W)` uint8 and `(N,)` int64; a bad file is handed over, not raised in a worker."""
        indices = [index for _, index in keys]
        try:
            images = [self.images.read(index, num_channels=self.num_channels) for index in indices]
        except BadImageError as error:
            return error
        if isinstance(self.view, RandomView):
            views = self.view(images, epoch=keys[0][0], indices=indices)
        else:
            fixed = [self.view(image) for image in images]
            views = empty_batch(len(fixed), self.num_channels, fixed[0].shape[-1])
            for place, image in zip(views, fixed, strict=True):
                place.copy_(image)
        return views, self.images.labels[torch.tensor(indices)]


class ImageLoader(DataLoader[Batch]):
    """A DataLoader over `ViewedImages` that yields `(N, C, H, W)` float32 in [0, 1] and `(N,)` int64.

    With `raw` images stay uint8, a quarter of the bytes, for who makes them float32 where they are needed.

    `instead` may give what a pass yields instead of the images, or None.

    Raises:
        UserError: while it is read, a file turned out to be damaged or a worker died.
    """

    raw = False
    instead: Callable[[], Iterator[Any] | None] | None = None

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        other = self.instead() if self.instead else None
        if other is not None:
            yield from other
            return
        try:
            for batch in super().__iter__():
                if isinstance(batch, BadImageError):
                    raise batch
                images, labels = batch
                yield images if self.raw else to_float(images), labels
        except (RuntimeError, EOFError, ConnectionError) as error:
            # A process that is killed while it hands a batch over leaves a connection without an end.
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            known = error if isinstance(error, RuntimeError) else _awaited_death() or error
            reason = (str(known).splitlines() or ["its connection broke"])[0]
            raise UserError(
                f"a loader process died ({reason}), mostly for want of memory; "
                "try a smaller data.num_workers or data.batch_size"
            ) from error


def _awaited_death() -> RuntimeError | None:
    """Wait until PyTorch learns from a signal that a loader process died, and return the error it makes of that.

    It raises it wherever the program is just then, which must not be where the first sign of it is being told.
    """
    try:
        time.sleep(_TOLD_WITHIN)
    except RuntimeError as error:
        return error
    return None


def identity_collate(batch: Any) -> Any:
    """Return the batch, which `ViewedImages` already put together."""
    return batch
