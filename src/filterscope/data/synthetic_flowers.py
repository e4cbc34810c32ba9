"""The embedded set: ten classes of flowers drawn by code, told apart by petals, colour and stripes together."""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from filterscope.data.datamodule import ImageDataModule
from filterscope.data.flower_drawing import SHAPES, Color, Looks, draw_flowers
from filterscope.data.images import DataSplits, Pixels
from filterscope.data.sampler import generator
from filterscope.errors import UserError
from filterscope.registry import register

STRIPES = ("level", "rising", "upright", "falling")
# Two colours of a stripe for each; seen in one channel, hues would look alike, so lightness takes their place.
COLORS: dict[str, tuple[Color, Color]] = {
    "violet": ((0.25, 0.10, 0.58), (0.82, 0.72, 0.99)),
    "yellow": ((0.76, 0.34, 0.02), (1.00, 0.90, 0.38)),
    "red": ((0.58, 0.03, 0.10), (0.98, 0.62, 0.58)),
}
GREYS: dict[str, tuple[Color, Color]] = {
    "dark": ((0.04, 0.04, 0.04), (0.30, 0.30, 0.30)),
    "middle": ((0.30, 0.30, 0.30), (0.62, 0.62, 0.62)),
    "light": ((0.64, 0.64, 0.64), (0.98, 0.98, 0.98)),
}

# (shape, stripes, colour). Knowing any one of them names at most 4 of the 10 right, any two at most 7.
CLASSES = (
    (0, 0, 1),
    (0, 0, 2),
    (0, 1, 1),
    (0, 1, 2),
    (1, 0, 2),
    (1, 2, 0),
    (1, 3, 0),
    (2, 2, 0),
    (2, 2, 2),
    (2, 3, 0),
)

_CHUNK = 20  # images drawn at once


@register("data")
@dataclass(kw_only=True, eq=False, repr=False)
class SyntheticFlowersDataModule(ImageDataModule):
    """Flowers that are drawn when they are asked for: no files, any size, the same for the same seed.

    Mirror images would belong to another class: `augment` is not for this set.
    """

    image_size: int = 96
    num_train: int = 1500
    num_val: int = 300
    num_test: int = 300

    def __post_init__(self) -> None:
        """Check the knobs; images have at least 16 pixels a side, and one of each class is needed to train."""
        super().__post_init__()
        if self.augment is not None:
            raise UserError("data.augment: a mirrored or cropped flower is of another class here; use null")
        if self.image_size < 16:
            raise UserError(f"data.image_size={self.image_size}: a flower needs at least 16 pixels")
        for name, least in (("num_train", len(CLASSES)), ("num_val", len(CLASSES)), ("num_test", 0)):
            if getattr(self, name) < least:
                raise UserError(f"data.{name}={getattr(self, name)}: must be at least {least}")

    def find(self) -> DataSplits:
        """Draw all images."""
        parts = {
            name: self._draw(name, count, number)
            for number, (name, count) in enumerate(
                (("train", self.num_train), ("val", self.num_val), ("test", self.num_test))
            )
        }
        return DataSplits(
            place="the synthetic flowers",
            class_names=class_names(self.num_channels),
            train=parts["train"],
            val=parts["val"],
            test=parts["test"] if self.num_test else None,
        )

    def _draw(self, title: str, count: int, number: int) -> Pixels:
        labels = torch.arange(count)[torch.randperm(count, generator=generator(self.seed, number))] % len(CLASSES)
        pixels = torch.empty(count, self.num_channels, self.image_size, self.image_size, dtype=torch.uint8)

        def draw(start: int) -> None:
            part = slice(start, start + _CHUNK)
            looks = looks_of(labels[part], num_channels=self.num_channels)
            drawn = draw_flowers(looks, size=self.image_size, generator=generator(self.seed, number, start))
            if self.num_channels == 1:
                drawn = torch.einsum("nchw,c->nhw", drawn, torch.tensor([0.299, 0.587, 0.114]))[:, None]
            pixels[part] = (drawn * 255).round().to(torch.uint8)

        # Many small operations: one thread for each part of the images beats many threads for each operation.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(draw, range(0, count, _CHUNK)))
        finally:
            torch.set_num_threads(threads)
        return Pixels(pixels=pixels, labels=labels, title=title)


def class_names(num_channels: int) -> tuple[str, ...]:
    """Return what the classes are called; with one channel, lightness takes the hue's place."""
    colors = tuple(COLORS if num_channels == 3 else GREYS)
    return tuple(f"{SHAPES[shape]}, {colors[color]}, {STRIPES[stripes]}" for shape, stripes, color in CLASSES)


def looks_of(labels: Tensor, *, num_channels: int) -> Looks:
    """Return what is to be drawn for flowers of these classes."""
    shapes, stripes, colors = torch.tensor(CLASSES)[labels].unbind(1)
    palette = torch.tensor(list((COLORS if num_channels == 3 else GREYS).values()))
    dark, light = palette[colors].unbind(1)
    # Level stripes change downwards; angles count from the x axis, y points down, so rising ones lie at +45°.
    across = torch.tensor([90.0, 45.0, 0.0, 135.0]) * math.pi / 180
    return Looks(shapes=shapes, angles=across[stripes], light=light, dark=dark)
