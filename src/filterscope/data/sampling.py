"""Randomness without a state: every order follows from (seed, epoch), so that a resumed run reads the same images."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.utils.data import Sampler

Key = tuple[int, int]


def mixed_seed(*numbers: int) -> int:
    """Return one 32-bit seed from several non-negative numbers; all of their bits count."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def generator(*numbers: int) -> torch.Generator:
    """Return a generator of its own, seeded by several non-negative numbers."""
    return torch.Generator().manual_seed(mixed_seed(*numbers))


class EpochSampler(Sampler[Key]):
    """Yields `(epoch, index)`: the workers learn the epoch from the key, even those that outlive it.

    `epoch` is asked each time a pass begins. With `shuffle` the order follows from (seed, epoch) and every rank gets
    as many images, some of them twice where they do not divide; without it rank r gets r, r + world, …, none twice.
    """

    def __init__(
        self, length: int, *, epoch: Callable[[], int], seed: int, shuffle: bool, rank: int = 0, world: int = 1
    ) -> None:
        self.length = length
        self.epoch = epoch
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.world = world

    def __iter__(self) -> Iterator[Key]:
        epoch = self.epoch()
        order = torch.arange(self.length)
        if self.shuffle:
            order = torch.randperm(self.length, generator=generator(self.seed, epoch))
            order = torch.cat([order, order[: -self.length % self.world]])
        for index in order[self.rank :: self.world].tolist():
            yield epoch, index

    def __len__(self) -> int:
        whole = self.length + (-self.length % self.world if self.shuffle else 0)
        return len(range(self.rank, whole, self.world))
