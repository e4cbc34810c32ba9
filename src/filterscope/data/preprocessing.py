"""How an image is shown to the network: what is random in training, and the fixed view."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torchvision.transforms import v2

from filterscope.errors import UserError
from filterscope.registry import register

View = Callable[[Tensor], Tensor]


@register("augmentation")
@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What is random in the training view of a photograph.

    `crop_area` is the share of the image's area that a crop takes, `crop_ratio` the range of its width to its height;
    with `crop_area` None crops are squares of the image resized as in the fixed view, out of a random place. `flip` is
    the probability of a mirror image, `color` the range ± by which brightness, contrast and saturation change.
    """

    crop_area: Sequence[float] | None = (0.35, 1.0)
    crop_ratio: Sequence[float] = (0.75, 1.3333)
    flip: float = 0.5
    color: float = 0.0

    def __post_init__(self) -> None:
        if self.crop_area is not None:
            low, high = _range("crop_area", self.crop_area)
            if not 0 < low <= high <= 1:
                shares = list(self.crop_area)
                raise UserError(f"data.augment.crop_area={shares}: two shares, 0 < smallest ≤ largest ≤ 1, or null")
        low, high = _range("crop_ratio", self.crop_ratio)
        if not 0 < low <= high:
            raise UserError(f"data.augment.crop_ratio={list(self.crop_ratio)}: two ratios, 0 < smallest ≤ largest")
        for name in ("flip", "color"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"data.augment.{name}={getattr(self, name)}: must lie in [0, 1]")


def fixed_view(*, image_size: int, resize_ratio: float) -> View:
    """Return the view without chance, uint8 `(C, H, W)` → `(C, image_size, image_size)`.

    The shorter side becomes `image_size × resize_ratio`, then the middle is cut out.
    """
    if resize_ratio < 1:
        raise UserError(f"data.resize_ratio={resize_ratio}: must be at least 1, or the crop would leave the image")
    steps = [v2.Resize(round(image_size * resize_ratio), antialias=True), v2.CenterCrop(image_size)]
    return cast(View, v2.Compose(steps))


def resized(image: Tensor, side: int) -> Tensor:
    """Return an image, uint8 `(C, H, W)`, with a shorter side of `side` pixels; the same where it has that already."""
    return image if min(image.shape[-2:]) == side else cast(Tensor, v2.functional.resize(image, [side], antialias=True))


def to_float(images: Tensor) -> Tensor:
    """Return uint8 images as float32 in [0, 1]."""
    return images.to(torch.float32).div_(255)


def _range(name: str, values: Sequence[float]) -> tuple[float, float]:
    if len(values) != 2:
        raise UserError(f"data.augment.{name}={list(values)}: wants two numbers, the smallest and the largest")
    return values[0], values[1]
