"""Split a data set into training, validation and test images: seeded, disjoint, unchanged if images are added."""

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from filterscope.data.images import DataSplits, Files, Images
from filterscope.data.sampler import generator
from filterscope.errors import UserError, suggestion

log = logging.getLogger(__name__)

_MOST_COMPARED = 20_000  # larger data sets are not searched for copies, for which files of equal size are read whole


def prepare_splits(
    found: DataSplits, *, exclude: Sequence[str], seed: int, training: bool = True
) -> tuple[tuple[str, ...], dict[str, Images]]:
    """Exclude classes and cut off the splits that a data set lacks.

    Args:
        found: the data set as it was found.
        exclude: names of classes to leave out; labels of the others become consecutive.
        seed: decides which images are cut off.
        training: whether the images are trained on; otherwise classes may have any number of images, and what is too
            few to be split is in `val`.

    Returns:
        The names of the remaining classes, and the images of `train`, `val` and, if there are any, `test`. Without
        labels all images are in `val`: they can be visualized, not trained on.

    Raises:
        UserError: an excluded class does not exist, fewer than two classes remain, a class has no training images, or
            a file has two labels.
    """
    found = replace(found, **_without_repeated(found))
    if not len(found.train):
        raise UserError(f"{found.location} holds no images")
    if not found.class_names:
        return (), {"val": found.train}
    names = _remaining_classes(found, exclude, at_least=2 if training else 1)
    splits = {
        split: _relabel(images, found.class_names, names)
        for split, images in (("train", found.train), ("val", found.val), ("test", found.test))
        if images is not None
    }
    if training:
        check_trainable({"train": splits["train"]}, names, location=found.location)
    missing = [split for split in ("val", "test") if split not in splits]
    fractions = [found.held_out[split] for split in missing]
    train = splits["train"]
    if any(fractions):
        numbers = hashed_numbers([train.key(i) for i in range(len(train))], seed=seed)
        parts = seeded_split(train.labels, numbers, fractions, class_names=names, training=training)
        for split, part in zip(["train", *missing], parts, strict=True):
            if len(part) or split == "train":
                splits[split] = train.select(part, train.labels[part])
    if not len(splits.get("val", ())) and not training:
        splits["val"] = train
    if training:
        _tell_copies(splits, found.location)
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


def hashed_numbers(keys: Sequence[str], *, seed: int) -> Tensor:
    """Return a uniform number in [0, 1) for each key, float64 `(N,)`, that follows from the seed and the key alone."""
    digests = (hashlib.blake2b(f"{seed} {key}".encode(errors="surrogateescape"), digest_size=6) for key in keys)
    return torch.tensor([int.from_bytes(each.digest()) / 2**48 for each in digests], dtype=torch.float64)


def seeded_split(
    labels: Tensor,
    numbers: Tensor,
    fractions: Sequence[float],
    *,
    class_names: Sequence[str],
    training: bool = True,
) -> tuple[Tensor, ...]:
    """Split images by their own random numbers, so that no other image of the class moves if one is added or removed.

    The fractions are therefore met on average. Each part with a fraction above 0 gets at least one image of each class;
    only where a class has too few images for that, an added image may move another one.

    Args:
        labels: int64 `(N,)`.
        numbers: of the images, uniform in [0, 1), `(N,)`.
        fractions: of the images for each part besides the training images.
        class_names: the names of the labels.
        training: whether a class with fewer images than there are parts is an error.

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
        if training and 0 < len(members) < needed:
            raise UserError(
                f"class {name!r} has {len(members)} image{'s' * (len(members) > 1)}, too few for {needed} splits; "
                f"leave it out with data.exclude=[{name}]"
            )
        members = members[numbers[members].argsort(stable=True)]
        start = 0
        for part, fraction in enumerate(fractions, start=1):
            if fraction > 0:
                below = int((numbers[members] < sum(fractions[:part])).sum())
                reserved = 1 + sum(f > 0 for f in fractions[part:]) if len(members) >= needed else 0
                end = min(max(below, start + 1), len(members) - reserved)
                parts[part].append(members[start:end])
                start = max(end, start)
        parts[0].append(members[start:])
    return tuple(torch.cat(part).sort().values if part else torch.empty(0, dtype=torch.int64) for part in parts)


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


def _without_repeated(found: DataSplits) -> dict[str, Any]:
    """Return the files of each split without those that are listed twice in it, also through links."""
    kept: dict[str, Any] = {}
    seen: dict[object, tuple[str, int]] = {}  # the split and the label of each file
    shared: Counter[tuple[str, str]] = Counter()
    repeated = 0
    for split, images in (("train", found.train), ("val", found.val), ("test", found.test)):
        if not isinstance(images, Files):
            continue
        once = []
        for index, (path, label) in enumerate(zip(images.paths, images.labels.tolist(), strict=True)):
            key = _file_id(path)
            known = key in seen
            owner, other = seen.setdefault(key, (split, label))
            if label != other:
                names = " and ".join(repr(found.class_names[each]) for each in (other, label))
                raise UserError(f"{path} is in two classes, {names}; leave it in one of them")
            if known and owner == split:
                repeated += 1
                continue
            if known:
                shared[owner, split] += 1
            once.append(index)
        if len(once) < len(images):
            kept[split] = images.select(torch.tensor(once), images.labels[once])
    if repeated:
        log.warning("%d of the files in %s are listed twice; they are used once", repeated, found.location)
    for (one, later), count in shared.items():
        log.warning("%d of the %s images are %s images, too, in %s", count, later, one, found.location)
    return kept


def _tell_copies(splits: Mapping[str, Images], location: str) -> None:
    """Log how many files of a split are copies, byte by byte, of files of an earlier split; not for large data sets."""
    files = {split: images.paths for split, images in splits.items() if isinstance(images, Files)}
    if sum(map(len, files.values())) > _MOST_COMPARED:
        return
    by_size: dict[int, dict[str, list[str]]] = {}
    for split, paths in files.items():
        for path in paths:
            with suppress(OSError):  # is reported as a damaged file
                by_size.setdefault(os.stat(path).st_size, {}).setdefault(split, []).append(path)  # noqa: PTH116
    copies: Counter[tuple[str, str]] = Counter()
    for alike in by_size.values():
        owners: dict[object, str] = {}
        for split, same_size in alike.items() if len(alike) > 1 else ():
            for digest in map(_file_hash, same_size):
                if owners.setdefault(digest, split) != split:
                    copies[owners[digest], split] += 1
    for (one, later), count in copies.items():
        log.warning("%d of the %s images are copies of %s images, byte by byte, in %s", count, later, one, location)


def _file_hash(path: str) -> object:
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            return hashlib.file_digest(file, "sha1").digest()
    except OSError:
        return path


def _file_id(path: str) -> object:
    try:
        about = os.stat(path)  # noqa: PTH116 (a million of them)
    except OSError:  # is reported as a damaged file
        return path
    return (about.st_dev, about.st_ino) if about.st_ino else path


def _remaining_classes(found: DataSplits, exclude: Sequence[str], *, at_least: int) -> tuple[str, ...]:
    unknown = [name for name in exclude if name not in found.class_names]
    if unknown:
        raise UserError(
            f"data.exclude names {unknown[0]!r}{suggestion(unknown[0], found.class_names)}, which is no class of "
            f"{found.location}; its classes are {', '.join(found.class_names)}"
        )
    names = tuple(name for name in found.class_names if name not in exclude)
    if len(names) < at_least:
        raise UserError(f"{found.location} has {len(names)} class(es) to tell apart; at least {at_least} are needed")
    return names


def _relabel(images: Images, before: Sequence[str], after: Sequence[str]) -> Images:
    """Return the images of the remaining classes with labels that index `after`."""
    if tuple(before) == tuple(after):
        return images
    new_label = {name: label for label, name in enumerate(after)}
    labels = torch.tensor([new_label.get(name, -1) for name in before], dtype=torch.int64)[images.labels]
    remaining = (labels >= 0).nonzero().flatten()
    return images.select(remaining, labels[remaining])
