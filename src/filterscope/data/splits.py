"""Split a data set into training, validation and test images: stratified, seeded, disjoint."""

import zlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from filterscope.data.images import DataSplits, Images
from filterscope.data.sampler import generator
from filterscope.errors import UserError, suggestion


def prepare_splits(
    found: DataSplits, *, exclude: Sequence[str], seed: int
) -> tuple[tuple[str, ...], dict[str, Images]]:
    """Exclude classes and cut off the splits that a data set lacks.

    Args:
        found: the data set as it was found.
        exclude: names of classes to leave out; labels of the others become consecutive.
        seed: decides which images are cut off.

    Returns:
        The names of the remaining classes, and the images of `train`, `val` and, if there are any, `test`. Without
        labels all images are in `val`: they can be visualized, not trained on.

    Raises:
        UserError: an excluded class does not exist, fewer than two classes remain, or a class has no training images.
    """
    if not len(found.train):
        raise UserError(f"{found.location} holds no images")
    if not found.class_names:
        return (), {"val": found.train}
    names = _remaining_classes(found, exclude)
    splits = {
        split: _relabel(images, found.class_names, names)
        for split, images in (("train", found.train), ("val", found.val), ("test", found.test))
        if images is not None
    }
    check_trainable({"train": splits["train"]}, names, location=found.location)
    missing = [split for split in ("val", "test") if split not in splits]
    fractions = [found.held_out[split] for split in missing]
    train = splits["train"]
    parts = stratified_split(train.labels, fractions, class_names=names, seed=seed)
    for split, part in zip(["train", *missing], parts, strict=True):
        if len(part):
            splits[split] = train.select(part, train.labels[part])
    if not len(splits.get("val", ())):
        raise UserError(f"{found.location} has no validation images and data.val_fraction is 0; give one or the other")
    return names, splits


def check_trainable(splits: Mapping[str, Images], names: Sequence[str], *, location: str) -> None:
    """Raise a `UserError` if a split has no images, or a class no training images."""
    for split, images in splits.items():
        if not len(images):
            raise UserError(f"{location} has no {split} images that can be read")
    if not names:
        return
    counts = torch.bincount(splits["train"].labels, minlength=len(names))
    for name, count in zip(names, counts.tolist(), strict=True):
        if not count:
            raise UserError(
                f"class {name!r} has no training images in {location}; "
                f"add some, or leave it out with data.exclude=[{name}]"
            )


def stratified_split(
    labels: Tensor, fractions: Sequence[float], *, class_names: Sequence[str], seed: int
) -> tuple[Tensor, ...]:
    """Split images at random so that each class is divided in the same proportions.

    The order of a class follows from the seed and the class's name only, so excluding a class moves no image of another
    one. Each part with a fraction above 0 gets at least one image of each class.

    Args:
        labels: int64 `(N,)`.
        fractions: of the images for each part besides the training images.
        class_names: the names of the labels.
        seed: of the random order.

    Returns:
        Ascending indices: those that remain for training, then one tensor for each fraction.

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
            reserved = 1 + sum(f > 0 for f in fractions[part:])  # one image for each part that follows
            count = max(min(wanted, len(members) - reserved), 0)
            parts[part].append(members[:count])
            members = members[count:]
        parts[0].append(members)
    return tuple(torch.cat(part).sort().values for part in parts)


def spread_over_classes(labels: Tensor, count: int, *, seed: int) -> Tensor:
    """Return the indices of at most `count` random images, spread evenly over the classes and ordered by class."""
    order = torch.randperm(len(labels), generator=generator(seed))
    by_class = order[torch.argsort(labels[order], stable=True)]
    sizes = torch.unique_consecutive(labels[by_class], return_counts=True)[1]
    turn = torch.cat([torch.arange(int(size)) for size in sizes]) if len(sizes) else sizes
    # All classes have their first turn before any has its second; within a turn they are ordered as in `order`.
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    chosen = by_class[torch.argsort(turn * len(order) + rank[by_class])[:count]]
    return chosen[torch.argsort(labels[chosen], stable=True)]


def _remaining_classes(found: DataSplits, exclude: Sequence[str]) -> tuple[str, ...]:
    unknown = [name for name in exclude if name not in found.class_names]
    if unknown:
        raise UserError(
            f"data.exclude names {unknown[0]!r}{suggestion(unknown[0], found.class_names)}, which is no class of "
            f"{found.location}; its classes are {', '.join(found.class_names)}"
        )
    names = tuple(name for name in found.class_names if name not in exclude)
    if len(names) < 2:
        raise UserError(f"{found.location} has {len(names)} class(es) to tell apart; at least 2 are needed")
    return names


def _relabel(images: Images, before: Sequence[str], after: Sequence[str]) -> Images:
    """Return the images of the remaining classes with labels that index `after`."""
    if tuple(before) == tuple(after):
        return images
    new_label = {name: label for label, name in enumerate(after)}
    labels = torch.tensor([new_label.get(name, -1) for name in before], dtype=torch.int64)[images.labels]
    remaining = (labels >= 0).nonzero().flatten()
    return images.select(remaining, labels[remaining])
