"""From what a set consists of to its splits: classes left out, parts cut off, every class with images to train on."""

from collections.abc import Mapping, Sequence

import torch

from filterscope.data.images import DataSplits, Images
from filterscope.data.splits import stratified_split
from filterscope.errors import UserError, suggestion


def prepare(found: DataSplits, *, exclude: Sequence[str], seed: int) -> tuple[tuple[str, ...], dict[str, Images]]:
    """Return the names of the classes that stay, and the images of `train`, `val` and, where there are any, `test`.

    Images without labels are all in `val`: they can be looked at.

    Raises:
        UserError: an excluded class does not exist, fewer than two stay, or a class has nothing to train on.
    """
    if not len(found.train):
        raise UserError(f"{found.place} holds no images")
    if not found.class_names:
        return (), {"val": found.train}
    names = _remaining(found, exclude)
    splits = {
        split: _keep(images, found.class_names, names)
        for split, images in (("train", found.train), ("val", found.val), ("test", found.test))
        if images is not None
    }
    check_trainable({"train": splits["train"]}, names, place=found.place)
    missing = [split for split in ("val", "test") if split not in splits]
    fractions = [found.held_out[split] for split in missing]
    whole = splits["train"]
    parts = stratified_split(whole.labels, fractions, class_names=names, seed=seed)
    for split, part in zip(["train", *missing], parts, strict=True):
        if len(part):
            splits[split] = whole.select(part, whole.labels[part])
    if not len(splits.get("val", ())):
        raise UserError(f"{found.place} has no validation images and data.val_fraction is 0; give one or the other")
    return names, splits


def check_trainable(splits: Mapping[str, Images], names: Sequence[str], *, place: str) -> None:
    """Raise a `UserError` where a class has no training image, or a split no image at all."""
    emptied = [split for split, images in splits.items() if not len(images)]
    if emptied:
        raise UserError(f"{place} has no {emptied[0]} images that can be read")
    if not names:
        return
    counts = torch.bincount(splits["train"].labels, minlength=len(names))
    without = [name for name, count in zip(names, counts.tolist(), strict=True) if not count]
    if without:
        raise UserError(
            f"class {without[0]!r} has no training images in {place}; "
            f"add some, or leave it out with data.exclude=[{without[0]}]"
        )


def _remaining(found: DataSplits, exclude: Sequence[str]) -> tuple[str, ...]:
    unknown = [name for name in exclude if name not in found.class_names]
    if unknown:
        raise UserError(
            f"data.exclude names {unknown[0]!r}{suggestion(unknown[0], found.class_names)}, "
            f"which is no class of {found.place}; "
            f"its classes are {', '.join(found.class_names)}"
        )
    names = tuple(name for name in found.class_names if name not in exclude)
    if len(names) < 2:
        raise UserError(f"{found.place} has {len(names)} class(es) to tell apart; at least 2 are needed")
    return names


def _keep(images: Images, before: Sequence[str], after: Sequence[str]) -> Images:
    if tuple(before) == tuple(after):
        return images
    place = {name: label for label, name in enumerate(after)}
    labels = torch.tensor([place.get(name, -1) for name in before], dtype=torch.int64)[images.labels]
    kept = (labels >= 0).nonzero().flatten()
    return images.select(kept, labels[kept])
