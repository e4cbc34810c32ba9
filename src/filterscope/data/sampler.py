"""Random numbers and orders without a state: they follow from (seed, epoch, index), so a resumed run repeats them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import SequentialSampler

Key = tuple[int, int]
"""The epoch and the index of an image."""

_BLOCKS = 16  # parts of the storage whose images are shuffled together


def mix_seed(*numbers: int) -> int:
    """Return one 32-bit seed from several non-negative integers of any size."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def generator(*numbers: int) -> torch.Generator:
    """Return a new generator that is seeded by several non-negative integers."""
    return torch.Generator().manual_seed(mix_seed(*numbers))


def random_numbers(seed: int, epoch: int, indices: Sequence[int], count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return `count` uniform random numbers in [0, 1) for each index, `(N, count)`.

    They are counters hashed by SplitMix64 (Steele et al. 2014): there is no state, and a batch takes microseconds.
    """
    start = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0]
    counters = np.asarray(indices, dtype=np.uint64)[:, None] * np.uint64(count) + np.arange(count, dtype=np.uint64)
    mixed = start + counters * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    numbers: np.ndarray[Any, np.dtype[np.float64]] = ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53
    return numbers


@dataclass(eq=False)
class EpochSampler(SequentialSampler):
    """Yields pairs (epoch, index), so that loader processes that outlive an epoch learn the next one.

    It derives from `SequentialSampler` because Lightning replaces any other sampler for `trainer.overfit_batches`; the
    datamodule repeats epoch 0 then.

    Args:
        length: the number of images.
        epoch: returns the current epoch; it is called when an epoch begins.
        seed: the order follows from (seed, epoch).
        shuffle: yield a random order, with equally many images on every rank (some twice if they do not divide);
            otherwise rank r gets r, r + world_size, …, each image once.
        weights: of the images, `(N,)`, to draw them with, with replacement; None: each once.
        rank: of this process.
        world_size: the number of processes.
        num_seen: returns how many images to leave out at the start of the epoch, because the run was trained on them
            before it was interrupted.
        blocks: the part of the storage that each image lies in, int64 `(length,)`, if it is best read part by part:
            these come in random order, the images of 16 of them are shuffled together, and each rank gets a stretch.
    """

    length: int
    _: KW_ONLY
    epoch: Callable[[], int]
    seed: int
    shuffle: bool
    weights: Tensor | None = None
    rank: int = 0
    world_size: int = 1
    num_seen: Callable[[], int] = int
    blocks: Tensor | None = None

    def __iter__(self) -> Iterator[Key]:  # type: ignore[override]
        epoch = self.epoch()
        order = torch.arange(self.length)
        if self.shuffle:
            draws = generator(self.seed, epoch)
            if self.weights is None:
                order = torch.randperm(self.length, generator=draws)
            else:
                order = torch.multinomial(self.weights.double(), self.length, replacement=True, generator=draws)
            if self.blocks is not None:
                turn = torch.randperm(int(self.blocks.max()) + 1, generator=draws)
                order = order[(turn[self.blocks[order]] // _BLOCKS).argsort(stable=True)]
            order = torch.cat([order, order[: -self.length % self.world_size]])
        if self.shuffle and self.blocks is not None:
            own = order.tensor_split(self.world_size)[self.rank]
        else:
            own = order[self.rank :: self.world_size]
        for index in own[self.num_seen() :].tolist():
            yield epoch, index

    def __len__(self) -> int:
        padded = self.length + (-self.length % self.world_size if self.shuffle else 0)
        return len(range(self.rank, padded, self.world_size))
