"""Mix pairs of training images and their labels (mixup, CutMix), and average predictions over views of a test image."""

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor
from torchvision.transforms import v2

Views = Literal["flip", "five_crop"]

_CROP = 0.875  # share of the image's side that each of the five crops takes


def mixer(*, num_classes: int, mixup: NonNegativeFloat = 0.0, cutmix: NonNegativeFloat = 0.0) -> v2.Transform | None:
    """Return a transform of a batch of images and labels, int64 `(N,)` → float `(N, num_classes)`, or None.

    Random numbers come from torch's default generator, which the module seeds in every step.

    Args:
        num_classes: of the data.
        mixup: the parameter of the Beta distribution of mixup's shares (Zhang et al. 2018); 0: no mixup.
        cutmix: the same of CutMix (Yun et al. 2019); 0: no CutMix. With both, each batch gets one of them.
    """
    chosen = [
        kind(num_classes=num_classes, alpha=alpha) for kind, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix)) if alpha
    ]
    return v2.RandomChoice(chosen) if len(chosen) > 1 else chosen[0] if chosen else None


def logits_over_views(forward: Callable[[Tensor], Tensor], images: Tensor, views: Views) -> Tensor:
    """Return the logarithm of the class probabilities, averaged over views of each image.

    Args:
        forward: returns the logits of images.
        images: `(N, C, H, W)`.
        views: `flip`: the image and its mirror image; `five_crop`: the corners and the center, enlarged to the image's
            size.
    """
    if views == "flip":
        batches = [images, images.flip(-1)]
    else:
        side = images.shape[-1]
        crops = v2.functional.five_crop(images, [round(_CROP * side)] * 2)
        batches = [v2.functional.resize(crop, [side, side], antialias=True) for crop in crops]
    return torch.stack([forward(batch).float().softmax(1) for batch in batches]).mean(0).log()
