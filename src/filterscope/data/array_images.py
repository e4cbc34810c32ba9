"""Images in any form that Python code holds them in, as one float tensor."""

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from filterscope.data.image_io import pillow_pixels
from filterscope.errors import UserError


def image_batch(given: Any, *, num_channels: int | None = None) -> Tensor:
    """Return images in any form that Python code holds them in as a float32 tensor `(N, C, H, W)` in [0, 1].

    Args:
        given: a tensor or array `(N, C, H, W)`, `(N, H, W, C)`, `(C, H, W)`, `(H, W, C)`, `(N, H, W)` or `(H, W)`; a
            Pillow image; or a list of these of one size. Integers count from 0 to 255 (uint16 to 65535), and floating
            point numbers lie in [0, 1].
        num_channels: which axis holds the channels where more than one could; Pillow images are converted to it.

    Raises:
        UserError: these are no images, they differ in size, or their values are not finite or outside of [0, 1].
    """
    if isinstance(given, list | tuple):
        batches = [image_batch(each, num_channels=num_channels) for each in given]
        sizes = list(dict.fromkeys("×".join(map(str, batch.shape[1:])) for batch in batches))
        if not sizes:
            raise UserError("there are no images in an empty list")
        if len(sizes) > 1:
            raise UserError(f"images of {len(sizes)} sizes ({', '.join(sizes[:3])} …); bring them to one size first")
        return torch.cat(batches)
    if isinstance(given, Image.Image):
        grey = given.mode in ("1", "L") or given.mode.startswith("I")
        given.load()  # before, a PNG of 16 bits looks like one of 8
        given = pillow_pixels(given, num_channels if num_channels in (1, 3) else 1 if grey else 3)
    try:
        values = torch.as_tensor(given).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"images must be tensors, arrays or Pillow images, not {type(given).__name__}") from error
    shape = tuple(values.shape)
    if values.dim() not in (2, 3, 4) or 0 in shape:
        raise UserError(f"images of shape {shape}; they must be (N, C, H, W) or (C, H, W)")
    usual = (num_channels,) if num_channels else (1, 3, 4)
    if values.dim() == 2 or (
        values.dim() == 3 and shape[0] not in (usual if num_channels else (1, 2, 3, 4)) and shape[2] not in usual
    ):
        values = values.unsqueeze(-3)  # grey
    elif shape[-1] in usual and shape[-3] not in (*usual, 1, 3):
        values = values.movedim(-1, -3)
    values = values if values.dim() == 4 else values[None]
    most = 65535 if values.dtype == torch.uint16 else 255
    scale = most if not values.is_floating_point() and values.dtype != torch.bool else 1
    return _in_unit_range(values.to(torch.float32 if scale != 65535 else torch.float64).div(scale).float())


def _in_unit_range(values: Tensor) -> Tensor:
    broken = int((~values.isfinite()).flatten(1).any(1).sum())
    if broken:
        raise UserError(f"{broken} of {len(values)} images hold values that are not finite (NaN or infinite)")
    low, high = float(values.min()), float(values.max())
    if low < -1e-3 or high > 1 + 1e-3:
        before = "pass them before normalisation, and the normalisation as mean=… and std=…"
        hint = "divide them by 255" if low >= 0 and 2 < high <= 255 else before
        raise UserError(f"images must lie in [0, 1], but these range from {low:.2g} to {high:.2g}: {hint}")
    return values.clamp(0, 1)
