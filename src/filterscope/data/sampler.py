"""Randomness without a state: every order follows from (seed, epoch), so that a resumed run reads the same images."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

Key = tuple[int, int]


def mix_seed(*numbers: int) -> int:
    """Return one 32-bit seed from several non-negative numbers; all of their bits count."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def generator(*numbers: int) -> torch.Generator:
    """Return a generator of its own, seeded by several non-negative numbers."""
    return torch.Generator().manual_seed(mix_seed(*numbers))


def random_numbers(seed: int, epoch: int, indices: Sequence[int], count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return `count` uniform numbers in [0, 1) for each index, `(N, count)`; they follow from (seed, epoch, index).

    A counter hashed by SplitMix64 (Steele et al. 2014): no state, and a batch costs microseconds.
    """
    start = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0]
    lanes = np.asarray(indices, dtype=np.uint64)[:, None] * np.uint64(count) + np.arange(count, dtype=np.uint64)
    mixed = start + lanes * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    numbers: np.ndarray[Any, np.dtype[np.float64]] = ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53
    return numbers


class EpochSampler(Sampler[Key]):
    """Yields `(epoch, index)`: the workers learn the epoch from the key, even those that outlive it.

    `epoch` is asked each time a pass begins. With `shuffle` the order follows from (seed, epoch) and every rank gets
    as many images, some of them twice where they do not divide; without it rank r gets r, r + world, …, none twice.
    `behind` says how many of them a pass leaves out because they were read before an interruption.
    """

    def __init__(
        self,
        length: int,
        *,
        epoch: Callable[[], int],
        seed: int,
        shuffle: bool,
        rank: int = 0,
        world: int = 1,
        behind: Callable[[], int] = int,
    ) -> None:
        self.length = length
        self.epoch = epoch
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.world = world
        self.behind = behind

    def __iter__(self) -> Iterator[Key]:
        epoch = self.epoch()
        order = torch.arange(self.length)
        if self.shuffle:
            order = torch.randperm(self.length, generator=generator(self.seed, epoch))
            order = torch.cat([order, order[: -self.length % self.world]])
        for index in order[self.rank :: self.world][self.behind() :].tolist():
            yield epoch, index

    def __len__(self) -> int:
        whole = self.length + (-self.length % self.world if self.shuffle else 0)
        return len(range(self.rank, whole, self.world))
