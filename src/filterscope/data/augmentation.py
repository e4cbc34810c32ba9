"""Random views in batches: where a photograph is cropped, whether it is mirrored, how its colours change."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as V2

from filterscope.data.preprocessing import Augmentation, resized
from filterscope.data.sampler import random_numbers

Numbers = np.ndarray[Any, np.dtype[Any]]

_TRIES = 10  # to find a crop that fits into the image, as torchvision's RandomResizedCrop makes
_LANES = 2 * _TRIES + 6  # numbers drawn for each image: tries, place, mirror, three colours


@dataclass(frozen=True, kw_only=True)
class RandomView:
    """Shows each image at random; what is drawn follows from (seed, epoch, index) alone.

    A crop whose area and ratio `augment` says is resized to `image_size`; without `crop_area` it is a square of
    `image_size` pixels out of the image whose shorter side was made `image_size × resize_ratio` long.
    """

    augment: Augmentation
    image_size: int
    resize_ratio: float
    seed: int

    def __call__(self, images: Sequence[Tensor], *, epoch: int, indices: Sequence[int]) -> Tensor:
        """Return the views, `(N, C, image_size, image_size)` uint8, of images `(C, H, W)` uint8."""
        drawn = random_numbers(self.seed, epoch, indices, _LANES)
        if self.augment.crop_area is None:
            side = round(self.image_size * self.resize_ratio)
            images = [resized(image, side) for image in images]
        sizes = np.array([image.shape[-2:] for image in images])
        boxes = self._boxes(sizes, drawn[:, : 2 * _TRIES + 2]).tolist()
        mirrored = (drawn[:, 2 * _TRIES + 2] < self.augment.flip).tolist()
        views = empty_batch(len(images), len(images[0]), self.image_size)
        for view, image, (top, left, height, width), mirror in zip(views, images, boxes, mirrored, strict=True):
            part = image[:, top : top + height, left : left + width]
            if part.shape[1:] != view.shape[1:]:
                # In one piece the resizing of bytes is twice as fast.
                piece = part[None].contiguous(memory_format=torch.channels_last)
                part = F.interpolate(piece, size=view.shape[1:], mode="bilinear", antialias=True)[0]
            view.copy_(part.flip(-1) if mirror else part)
        if self.augment.color:
            factors = 1 + self.augment.color * (2 * drawn[:, -3:] - 1)
            for view, (brightness, contrast, saturation) in zip(views, factors.tolist(), strict=True):
                view.copy_(_colored(view, brightness, contrast, saturation))
        return views

    def _boxes(self, sizes: Numbers, drawn: Numbers) -> Numbers:
        """Return top, left, height and width of the crops, `(N, 4)` int64, for image sizes `(N, 2)`."""
        if self.augment.crop_area is None:
            heights = widths = np.full(len(sizes), self.image_size)
        else:
            heights, widths = _shapes(sizes, drawn[:, :-2], area=self.augment.crop_area, ratio=self.augment.crop_ratio)
        top = np.floor(drawn[:, -2] * (sizes[:, 0] - heights + 1))
        left = np.floor(drawn[:, -1] * (sizes[:, 1] - widths + 1))
        return np.stack([top, left, heights, widths], axis=1).astype(np.int64)


def empty_batch(count: int, num_channels: int, size: int) -> Tensor:
    """Return an uninitialised batch, uint8 `(count, num_channels, size, size)` in channels-last order.

    In a loader process it lies in the memory that it shares with its parent.
    """
    if torch.utils.data.get_worker_info() is None:
        flat = torch.empty(count * size * size * num_channels, dtype=torch.uint8)
    else:
        shared = torch.UntypedStorage._new_shared(count * size * size * num_channels)  # type: ignore[no-untyped-call]
        flat = torch.empty(0, dtype=torch.uint8).set_(shared)
    return flat.view(count, size, size, num_channels).permute(0, 3, 1, 2)


def _shapes(
    sizes: Numbers, drawn: Numbers, *, area: Sequence[float], ratio: Sequence[float]
) -> tuple[Numbers, Numbers]:
    """Return heights and widths of crops of a random area and ratio that fit into the images.

    Like torchvision's: the first of ten tries that fits, else the largest crop in the middle of the range.
    """
    height, width = sizes[:, :1], sizes[:, 1:]
    areas = height * width * (area[0] + drawn[:, :_TRIES] * (area[1] - area[0]))
    low, high = np.log(ratio)
    ratios = np.exp(low + drawn[:, _TRIES:] * (high - low))
    heights, widths = np.round(np.sqrt(areas / ratios)), np.round(np.sqrt(areas * ratios))
    fits = (heights >= 1) & (heights <= height) & (widths >= 1) & (widths <= width)
    first = fits.argmax(axis=1)[:, None]
    own = np.clip(width / height, ratio[0], ratio[1])
    largest_height = np.minimum(height, np.maximum(1, np.round(width / own)))
    largest_width = np.minimum(width, np.maximum(1, np.round(height * own)))
    found = fits.any(axis=1, keepdims=True)
    return (
        np.where(found, np.take_along_axis(heights, first, 1), largest_height)[:, 0],
        np.where(found, np.take_along_axis(widths, first, 1), largest_width)[:, 0],
    )


def _colored(image: Tensor, brightness: float, contrast: float, saturation: float) -> Tensor:
    image = V2.adjust_contrast(V2.adjust_brightness(image, brightness), contrast)
    colored: Tensor = V2.adjust_saturation(image, saturation)
    return colored
