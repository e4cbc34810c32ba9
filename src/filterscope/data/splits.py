"""One list of images is split into training, validation and test: stratified, seeded, disjoint."""

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from filterscope.data.sampler import generator
from filterscope.errors import UserError


def stratified_split(
    labels: Tensor, fractions: Sequence[float], *, class_names: Sequence[str], seed: int
) -> tuple[Tensor, ...]:
    """Return ascending indices: what is left for training, then one part for each of the fractions.

    Each class is split by itself, by an order that depends on the seed and the class's name only, so that leaving a
    class out moves no image of another. Every class has at least one image in every part of a fraction above 0.

    Raises:
        UserError: the fractions leave nothing for training, or a class has fewer images than there are parts.
    """
    if any(f < 0 for f in fractions) or sum(fractions) >= 1:
        raise UserError(f"held-out fractions {list(fractions)}: none may be negative, and their sum must stay below 1")
    parts: list[list[Tensor]] = [[] for _ in range(1 + len(fractions))]
    needed = 1 + sum(f > 0 for f in fractions)
    for label, name in enumerate(class_names):
        members = (labels == label).nonzero().flatten()
        if 0 < len(members) < needed:
            raise UserError(
                f"class {name!r} has {len(members)} image{'s' * (len(members) > 1)}, too few for {needed} splits; "
                f"leave it out with data.exclude=[{name}]"
            )
        members = members[torch.randperm(len(members), generator=generator(seed, zlib.crc32(name.encode())))]
        total = len(members)
        for part, fraction in enumerate(fractions, start=1):
            wanted = max(round(fraction * total), 1) if fraction > 0 else 0
            later = 1 + sum(f > 0 for f in fractions[part:])
            count = max(min(wanted, len(members) - later), 0)
            parts[part].append(members[:count])
            members = members[count:]
        parts[0].append(members)
    return tuple(torch.cat(part).sort().values for part in parts)


def spread(labels: Tensor, count: int, *, seed: int) -> Tensor:
    """Return the places of at most `count` images, spread over the classes and ordered by class.

    Every class comes once before any comes twice; which of its images, and which classes where there are more of them
    than `count`, follows from the seed.
    """
    order = torch.randperm(len(labels), generator=generator(seed))
    by_class = order[torch.argsort(labels[order], stable=True)]
    sizes = torch.unique_consecutive(labels[by_class], return_counts=True)[1]
    turn = torch.cat([torch.arange(int(size)) for size in sizes]) if len(sizes) else sizes
    # Within one turn the classes come in the order in which the permutation first met them.
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    chosen = by_class[torch.argsort(turn * len(order) + rank[by_class])[:count]]
    return chosen[torch.argsort(labels[chosen], stable=True)]
