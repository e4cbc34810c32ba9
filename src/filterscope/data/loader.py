"""The loader: batches are uint8 in the loader processes and float32 in [0, 1] afterwards."""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from filterscope.data.images import Images
from filterscope.data.preprocessing import RandomTransform, Transform, empty_batch, to_float
from filterscope.data.sampler import Key
from filterscope.errors import UserError, first_line
from filterscope.runtime.signals import stop_request

Batch = tuple[Tensor, Tensor]

_LONGEST_FOLDER = 70  # of a socket's path, at most 107 characters, of which its name takes up to 36
_SIGNAL_DELAY = 1.0  # seconds from the death of a loader process until PyTorch has surely noticed


@dataclass(frozen=True, kw_only=True)
class TransformedImages(Dataset[Batch]):
    """Images with their transform, read batch by batch."""

    images: Images
    transform: Transform | RandomTransform
    num_channels: int

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, keys: Sequence[Key]) -> Batch | UserError:
        """Return a batch, `(N, C, H, W)` uint8 and labels `(N,)` int64.

        The error of a damaged or missing file is returned instead: PyTorch would wrap one raised in a loader process.
        """
        indices = [index for _, index in keys]
        try:
            images = [self.images.read(index, num_channels=self.num_channels) for index in indices]
        except UserError as error:
            return error
        if isinstance(self.transform, RandomTransform):
            batch = self.transform(images, epoch=keys[0][0], indices=indices)
        else:
            transformed = [self.transform(image) for image in images]
            batch = empty_batch(len(transformed), self.num_channels, transformed[0].shape[-1])
            for out, image in zip(batch, transformed, strict=True):
                out.copy_(image)
        return batch, self.images.labels[torch.tensor(indices)]


class ImageLoader(DataLoader[Batch]):
    """A DataLoader over `TransformedImages` that yields `(N, C, H, W)` float32 in [0, 1] and `(N,)` int64.

    Attributes:
        uint8: yield uint8 images, a quarter of the bytes, for code that converts them on the GPU.
        batch_source: may return an iterator whose items are yielded instead of the images.

    Raises:
        UserError: while iterating, a file turned out to be damaged or a loader process died.
    """

    uint8 = False
    batch_source: Callable[[], Iterator[Any] | None] | None = None

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        source = self.batch_source() if self.batch_source else None
        if source is not None:
            yield from source
            return
        if self.num_workers and len(tempfile.gettempdir()) > _LONGEST_FOLDER:
            raise UserError(
                f"TMPDIR={tempfile.gettempdir()} is too long for the sockets of loader processes (at most "
                f"{_LONGEST_FOLDER} characters); give a shorter TMPDIR, or data.num_workers=0"
            )
        try:
            for batch in super().__iter__():
                if isinstance(batch, UserError):
                    raise batch
                images, labels = batch
                yield images if self.uint8 else to_float(images), labels
        except (RuntimeError, EOFError, ConnectionError) as error:
            # A process that is killed while it sends a batch leaves a broken connection (EOFError, ConnectionError).
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            stop_request.check()  # a signal to the whole process group has ended them
            cause = error if isinstance(error, RuntimeError) else _await_worker_error() or error
            raise UserError(
                f"a loader process died ({first_line(cause)}), probably because memory ran out; "
                "try a smaller data.num_workers or data.batch_size"
            ) from error


def _await_worker_error() -> RuntimeError | None:
    """Return the error that PyTorch raises when it learns from a signal that a loader process died.

    PyTorch raises it wherever the program happens to be, which must not be where the error is being reported.
    """
    try:
        time.sleep(_SIGNAL_DELAY)
    except RuntimeError as error:
        return error
    return None


def identity_collate(batch: Any) -> Any:
    """Return a batch as it is, since `TransformedImages` has collated it."""
    return batch
