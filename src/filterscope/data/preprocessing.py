"""Resizing, cropping and random augmentation of images.

Crops, flips and colours are not torchvision's because a resumed run must see the same images: all random numbers follow
from (seed, epoch, index), not from a global random state. RandAugment, TrivialAugment and erasing are torchvision's,
with the global state forked and seeded for each image, which is slower.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torchvision.transforms import v2

from filterscope.data.sampler import mix_seed, random_numbers
from filterscope.errors import UserError
from filterscope.registry import register

Transform = Callable[[Tensor], Tensor]
Numbers = np.ndarray[Any, np.dtype[Any]]

_LONGEST = 8  # the longer side of an image that is resized as a whole, in shorter sides
_TRIES = 10  # attempts to find a crop that fits into the image, as in torchvision's RandomResizedCrop
_NUM_RANDOM = 2 * _TRIES + 6  # random numbers for each image: attempts, position (2), flip (1), colours (3)


@register("augmentation")
@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """The random changes of training images.

    Args:
        crop_area: the smallest and largest share of the image's area that a crop takes, in (0, 1]; None: crops have
            `image_size` pixels a side and are taken from the resized image.
        crop_ratio: the smallest and largest width / height of a crop; not used if `crop_area` is None.
        flip: the probability of a horizontal flip.
        color: brightness, contrast and saturation are multiplied by a random factor in 1 ± this.
        policy: `rand` for RandAugment (Cubuk et al. 2020), `trivial` for TrivialAugment (Müller and Hutter 2021), after
            crop and flip; None: neither.
        magnitude: of RandAugment's two operations, 0 to 30.
        erase: the probability that a random rectangle becomes black (Zhong et al. 2020).

    Raises:
        UserError: a range is not two increasing numbers within its limits.
    """

    crop_area: Sequence[float] | None = (0.35, 1.0)
    crop_ratio: Sequence[float] = (0.75, 1.3333)
    flip: Annotated[float, Field(ge=0, le=1)] = 0.5
    color: Annotated[float, Field(ge=0, le=1)] = 0.0
    policy: Literal["rand", "trivial"] | None = None
    magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    erase: Annotated[float, Field(ge=0, le=1)] = 0.0

    def __post_init__(self) -> None:
        if self.crop_area is not None and not (_is_range(self.crop_area) and self.crop_area[1] <= 1):
            raise UserError(
                f"data.augment.crop_area={list(self.crop_area)}: must be two numbers, 0 < smallest ≤ largest ≤ 1, "
                "or null"
            )
        if not _is_range(self.crop_ratio):
            raise UserError(
                f"data.augment.crop_ratio={list(self.crop_ratio)}: must be two numbers, 0 < smallest ≤ largest"
            )


@dataclass(frozen=True, kw_only=True)
class RandomTransform:
    """Crops, resizes and augments a batch at random; the result follows from (seed, epoch, index) alone."""

    augment: Augmentation
    image_size: int
    resize_ratio: float
    seed: int

    def __call__(self, images: Sequence[Tensor], *, epoch: int, indices: Sequence[int]) -> Tensor:
        """Return a batch, `(N, C, image_size, image_size)` uint8, of images `(C, H, W)` uint8 of any size."""
        numbers = random_numbers(self.seed, epoch, indices, _NUM_RANDOM)
        if self.augment.crop_area is None:
            side = round(self.image_size * self.resize_ratio)
            images = [resize(image, side) for image in images]
        sizes = np.array([image.shape[-2:] for image in images])
        boxes = self._crop_boxes(sizes, numbers[:, : 2 * _TRIES + 2]).tolist()
        flips = (numbers[:, 2 * _TRIES + 2] < self.augment.flip).tolist()
        batch = empty_batch(len(images), len(images[0]), self.image_size)
        for out, image, (top, left, height, width), flip in zip(batch, images, boxes, flips, strict=True):
            crop = image[:, top : top + height, left : left + width]
            if crop.shape[1:] != out.shape[1:]:
                # Resizing uint8 images is twice as fast in this memory layout.
                contiguous = crop[None].contiguous(memory_format=torch.channels_last)
                crop = F.interpolate(contiguous, size=out.shape[1:], mode="bilinear", antialias=True)[0]
            out.copy_(crop.flip(-1) if flip else crop)
        if self.augment.color:
            factors = 1 + self.augment.color * (2 * numbers[:, -3:] - 1)
            for out, (brightness, contrast, saturation) in zip(batch, factors.tolist(), strict=True):
                out.copy_(_adjust_color(out, brightness, contrast, saturation))
        if (changes := self._library_transforms()) is not None:
            with torch.random.fork_rng(devices=[]):
                for out, index in zip(batch, indices, strict=True):
                    torch.default_generator.manual_seed(mix_seed(self.seed, epoch, index))
                    out.copy_(changes(out))
        return batch

    def _library_transforms(self) -> Transform | None:
        """Return torchvision's transforms that the options ask for; they draw from torch's default generator."""
        augment = self.augment
        steps: list[Any] = []
        if augment.policy is not None:
            rand = augment.policy == "rand"
            steps.append(v2.RandAugment(magnitude=augment.magnitude) if rand else v2.TrivialAugmentWide())
        if augment.erase:
            steps.append(v2.RandomErasing(augment.erase))
        return cast(Transform, v2.Compose(steps)) if steps else None

    def _crop_boxes(self, sizes: Numbers, numbers: Numbers) -> Numbers:
        """Return top, left, height and width of the crops, `(N, 4)` int64, for image sizes `(N, 2)`."""
        if self.augment.crop_area is None:
            heights = widths = np.full(len(sizes), self.image_size)
        else:
            area, ratio = self.augment.crop_area, self.augment.crop_ratio
            heights, widths = _crop_sizes(sizes, numbers[:, :-2], area=area, ratio=ratio)
        top = np.floor(numbers[:, -2] * (sizes[:, 0] - heights + 1))
        left = np.floor(numbers[:, -1] * (sizes[:, 1] - widths + 1))
        return np.stack([top, left, heights, widths], axis=1).astype(np.int64)


def fixed_transform(*, image_size: int, resize_ratio: float) -> Transform:
    """Return the transform without randomness, uint8 `(C, H, W)` → `(C, image_size, image_size)`.

    The shorter side is resized to `image_size × resize_ratio` pixels, then the center is cropped.
    """
    steps = [partial(resize, side=round(image_size * resize_ratio)), v2.CenterCrop(image_size)]
    return cast(Transform, v2.Compose(steps))


def resize(image: Tensor, side: int) -> Tensor:
    """Return a uint8 image `(C, H, W)` resized so that its shorter side has `side` pixels.

    Of a strip only the middle is kept, as it would take gigabytes to enlarge an image of 30,000×2 pixels.
    """
    shorter = min(image.shape[-2:])
    if max(image.shape[-2:]) > _LONGEST * shorter:
        image = v2.functional.center_crop(image, [min(each, _LONGEST * shorter) for each in image.shape[-2:]])
    return image if shorter == side else cast(Tensor, v2.functional.resize(image, [side], antialias=True))


def to_float(images: Tensor) -> Tensor:
    """Return uint8 images as float32 in [0, 1]."""
    return images.to(torch.float32).div_(255)


def empty_batch(count: int, num_channels: int, size: int) -> Tensor:
    """Return an uninitialised batch, uint8 `(count, num_channels, size, size)` in channels-last order."""
    shape = (count, num_channels, size, size)
    return torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last)


def _is_range(values: Sequence[float]) -> bool:
    return len(values) == 2 and 0 < values[0] <= values[1]


def _crop_sizes(
    sizes: Numbers, numbers: Numbers, *, area: Sequence[float], ratio: Sequence[float]
) -> tuple[Numbers, Numbers]:
    """Return heights and widths of crops with a random area and ratio that fit into the images.

    As in torchvision: the first of ten attempts that fits, otherwise the largest crop with an allowed ratio.
    """
    height, width = sizes[:, :1], sizes[:, 1:]
    areas = height * width * (area[0] + numbers[:, :_TRIES] * (area[1] - area[0]))
    low, high = np.log(ratio)
    ratios = np.exp(low + numbers[:, _TRIES:] * (high - low))
    heights, widths = np.round(np.sqrt(areas / ratios)), np.round(np.sqrt(areas * ratios))
    fits = (heights >= 1) & (heights <= height) & (widths >= 1) & (widths <= width)
    first = fits.argmax(axis=1)[:, None]
    allowed = np.clip(width / height, ratio[0], ratio[1])
    largest_height = np.minimum(height, np.maximum(1, np.round(width / allowed)))
    largest_width = np.minimum(width, np.maximum(1, np.round(height * allowed)))
    any_fits = fits.any(axis=1, keepdims=True)
    return (
        np.where(any_fits, np.take_along_axis(heights, first, 1), largest_height)[:, 0],
        np.where(any_fits, np.take_along_axis(widths, first, 1), largest_width)[:, 0],
    )


def _adjust_color(image: Tensor, brightness: float, contrast: float, saturation: float) -> Tensor:
    image = v2.functional.adjust_contrast(v2.functional.adjust_brightness(image, brightness), contrast)
    return cast(Tensor, v2.functional.adjust_saturation(image, saturation))
