"""The example images of a run: taken from a datamodule, and packed as checkpoints hold them."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from filterscope.data.datamodule import ImageDataModule
from filterscope.visuals.visual import Examples


def examples_of(data: ImageDataModule, count: int, seed: int = 0) -> Examples:
    """Return validation images of a datamodule, spread over the classes; it gives more of them when asked."""
    images, labels, names = data.examples(count, seed)
    return Examples(
        images=images,
        labels=labels if data.class_names else None,
        names=names,
        class_names=tuple(data.class_names),
        more=partial(examples_of, data, seed=seed),
    )


def pack_examples(examples: Examples) -> dict[str, Any]:
    """Return the examples as plain data; images as uint8."""
    return {
        "images": (examples.images * 255).round().to(torch.uint8),
        "labels": examples.labels,
        "class_names": list(examples.class_names),
        "names": list(examples.names),
    }


def unpack_examples(packed: Mapping[str, Any]) -> Examples:
    """Return the examples that `pack_examples` packed."""
    images: Tensor = packed["images"]
    return Examples(
        images=images.float() / 255,
        labels=packed["labels"],
        class_names=tuple(packed["class_names"]),
        names=tuple(packed["names"]),
    )
