"""Ten classes of flowers drawn by code, told apart by petals, colour and stripes together."""

import logging
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from filterscope.data.datamodule import ImageDataModule
from filterscope.data.flower_drawing import SHAPES, Appearance, Color, draw_flowers
from filterscope.data.images import DataSplits, Pixels, to_grey
from filterscope.data.sampler import generator
from filterscope.errors import UserError
from filterscope.registry import register

log = logging.getLogger(__name__)

STRIPES = ("level", "rising", "upright", "falling")
# The two colours of the stripes. In one channel the hues would look alike, so the classes differ in lightness there.
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

# (shape, stripes, colour). Any one of the three tells at most 4 of the 10 classes apart, any two at most 7.
CLASSES = (
    (0, 0, 1), (0, 0, 2), (0, 1, 1), (0, 1, 2), (1, 0, 2), (1, 2, 0), (1, 3, 0), (2, 2, 0), (2, 2, 2), (2, 3, 0),
)  # fmt: skip

MAX_IMAGES = 1_000_000  # of a split

_SLOW = 20_000_000  # more pixels than this, in all images, are announced before they are drawn
_CHUNK = 20  # images drawn at once


@register("data")
@dataclass(kw_only=True, eq=False, repr=False)
class SyntheticFlowersDataModule(ImageDataModule):
    """Flowers that are drawn in memory: no files, any size, the same images for the same seed.

    Raises:
        UserError: `augment` is given; a mirrored or cropped flower would belong to another class.
    """

    image_size: Annotated[int, Field(ge=16)] = 96
    num_train: Annotated[int, Field(ge=len(CLASSES), le=MAX_IMAGES)] = 1000
    num_val: Annotated[int, Field(ge=len(CLASSES), le=MAX_IMAGES)] = 300
    num_test: Annotated[int, Field(ge=0, le=MAX_IMAGES)] = 300

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.augment is not None:
            raise UserError("data.augment: a mirrored or cropped flower is of another class here; use null")

    def find(self) -> DataSplits:
        """Draw all images."""
        count, size = self.num_train + self.num_val + self.num_test, self.image_size
        if count * size**2 > _SLOW:
            log.info("drawing %d images of %d×%d pixels, which takes a while", count, size, size)
        return DataSplits(
            location="the synthetic flowers",
            class_names=class_names(self.num_channels),
            train=self._draw("train", self.num_train, 0),
            val=self._draw("val", self.num_val, 1),
            test=self._draw("test", self.num_test, 2) if self.num_test else None,
        )

    def _draw(self, title: str, count: int, number: int) -> Pixels:
        """Draw `count` flowers for the split with this title and number."""
        labels = torch.arange(count)[torch.randperm(count, generator=generator(self.seed, number))] % len(CLASSES)
        pixels = torch.empty(count, self.num_channels, self.image_size, self.image_size, dtype=torch.uint8)

        def draw(start: int) -> None:
            part = slice(start, start + _CHUNK)
            appearance = class_appearance(labels[part], num_channels=self.num_channels)
            drawn = draw_flowers(appearance, size=self.image_size, generator=generator(self.seed, number, start))
            if self.num_channels == 1:
                drawn = to_grey(drawn)
            pixels[part] = (drawn * 255).round().to(torch.uint8)

        # The operations are small: several images at once in one thread each are faster than one image in all threads.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(draw, range(0, count, _CHUNK)))
        finally:
            torch.set_num_threads(threads)
        return Pixels(pixels=pixels, labels=labels, title=title)


def class_names(num_channels: int) -> tuple[str, ...]:
    """Return the names of the classes, with lightness instead of hue for one channel."""
    colors = tuple(COLORS if num_channels == 3 else GREYS)
    return tuple(f"{SHAPES[shape]}, {colors[color]}, {STRIPES[stripes]}" for shape, stripes, color in CLASSES)


def class_appearance(labels: Tensor, *, num_channels: int) -> Appearance:
    """Return the appearance of flowers of the classes `labels`, int64 `(N,)`."""
    shapes, stripes, colors = torch.tensor(CLASSES)[labels].unbind(1)
    palette = torch.tensor(list((COLORS if num_channels == 3 else GREYS).values()))
    dark, light = palette[colors].unbind(1)
    # Angles across the stripes, from the x axis with y pointing down: level stripes 90°, rising ones 45°.
    across = torch.tensor([90.0, 45.0, 0.0, 135.0]) * math.pi / 180
    return Appearance(shapes=shapes, angles=across[stripes], light=light, dark=dark)
