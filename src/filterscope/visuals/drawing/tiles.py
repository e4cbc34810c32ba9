"""Tensors to tiles: each map or kernel is scaled to full contrast, and constant or non-finite values are drawn too."""

import math
from functools import lru_cache
from typing import Any

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from filterscope.analysis.filters import shared_patterns, strongest_inputs
from filterscope.visuals.drawing.grid import BACKGROUND, EDGE, FAINT, Legend, Pixels, blank

SIGNED = "RdBu_r"
UNSIGNED = "viridis"
_LEVELS = 127  # colours of a map; an odd number, so that zero is exactly in the middle


def photo(image: Tensor, size: int) -> Pixels:
    """Return an image `(C, H, W)` in [0, 1], grey or colour, as a tile that fits into `size` × `size` pixels.

    Values outside [0, 1] are clamped. Small images are enlarged without blur, large ones shrunk with a filter.
    """
    values = image.detach().float().cpu().nan_to_num().clamp(0, 1)
    values = values.expand(3, -1, -1) if len(values) == 1 else values[:3]
    return _coloured(values, size, smooth=max(values.shape[-2:]) >= 64)


def dotted(tile: Pixels) -> Pixels:
    """Return a tile with a white dot at the lower right, which says that a real patch replaces a synthesized image."""
    image = Image.fromarray(tile)
    right, bottom, size = image.width - 4, image.height - 4, max(min(image.size) // 7, 4)
    ImageDraw.Draw(image).ellipse((right - size, bottom - size, right, bottom), fill="white", outline="black", width=2)
    return np.array(image)


def boxed(tile: Pixels, place: tuple[int, int, int], size: int) -> Pixels:
    """Return the tile of an image of `size` pixels with a frame around a square, given by its top, left and side."""
    image = Image.fromarray(tile)
    top, left, side = (round(each * image.width / size) for each in place)
    edges = (left, top, left + side - 1, top + side - 1)
    left, top, right, bottom = (min(max(edge, 1), image.width - 2) for edge in edges)
    draw = ImageDraw.Draw(image)
    draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline="black", width=4)
    draw.rectangle((left, top, right, bottom), outline="white", width=2)
    return np.array(image)


def kernel(values: Tensor, size: int) -> Pixels:
    """Return a kernel `(1 or 3, h, w)` as a tile in grey or colour; zero is mid-grey, the largest weight extreme."""
    values = values.detach().float().cpu().nan_to_num()
    scaled = 0.5 + 0.5 * values / values.abs().max().clamp_min(1e-12)
    return _coloured(scaled.expand(3, -1, -1), size)


def signed(values: Tensor, size: int, *, largest: float | None = None) -> Pixels:
    """Return a map `(h, w)` as a tile from blue (negative) over white (zero) to red (positive).

    The scale is symmetric: `largest` is the value of full red, by default the map's own largest absolute value.
    """
    pixels: Pixels = signed_maps(values[None], size, largest=None if largest is None else torch.tensor([largest]))[0]
    return pixels


def signed_maps(maps: Tensor, size: int, *, largest: Tensor | None = None) -> Pixels:
    """Return maps `(n, h, w)` as tiles `(n, height, width, 3)` as `signed` does; `largest` has one entry for each."""
    values = maps.detach().float().cpu().nan_to_num()
    top = values.abs().amax((1, 2)) if largest is None else largest.float().cpu()
    return _mapped(0.5 + 0.5 * (values / top.clamp_min(1e-12)[:, None, None]), SIGNED, size)


def unsigned_maps(maps: Tensor, size: int) -> Pixels:
    """Return maps `(n, h, w)` as tiles `(n, height, width, 3)`, each from its minimum (dark) to its maximum (bright).

    A constant map is dark all over.
    """
    values = maps.detach().float().cpu().nan_to_num()
    low, high = values.amin((1, 2), keepdim=True), values.amax((1, 2), keepdim=True)
    return _mapped((values - low) / (high - low).clamp_min(1e-12), UNSIGNED, size)


def heat_colours(values: Tensor) -> Pixels:
    """Return values `(h, w)` in [0, 1] in the colours of `unsigned_maps`, one pixel each."""
    levels = (values.nan_to_num().clamp(0, 1) * (_LEVELS - 1)).round().long().cpu().numpy()
    return _lookup(UNSIGNED, levels)


def bars(values: Tensor, width: int, height: int) -> Pixels:
    """Return the values `(n,)` as bars around a zero line: red up for positive, blue down for negative ones.

    With more values than pixels a column shows the one of largest absolute value.
    """
    values = values.detach().float().cpu().nan_to_num()
    if len(values) > width:
        groups = torch.tensor_split(values, width)
        values = torch.stack([group[group.abs().argmax()] for group in groups])
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    span = max(high - low, 1e-12)
    owner = (np.arange(width) * len(values)) // width
    level = np.asarray(values)[owner]
    y = high - (np.arange(height)[:, None] + 0.5) / height * span
    ground, red, blue = [(b + e) // 3 for b, e in zip(BACKGROUND, EDGE, strict=True)], *_colours(SIGNED)[[107, 26]]
    tile = np.full((height, width, 3), ground, np.uint8)
    tile[(y > 0) & (y <= level)] = red
    tile[(y < 0) & (y >= level)] = blue
    zero = min(round(high / span * height), height - 1)
    tile[max(zero - 1, 0) : zero + 1] = FAINT
    if width // max(len(values), 1) >= 4:  # a dark line between bars, where there is room for one
        tile[:, np.flatnonzero(np.diff(owner))] //= 3
    return tile


def _with_stack(tile: Pixels, small: Pixels) -> Pixels:
    """Return a tile with smaller ones of one size stacked at its right side."""
    height, width = tile.shape[:2]
    part, wide = small[0].shape[:2]
    gap = 3
    whole = blank(height, width + gap + wide)
    whole[:, :width] = tile
    step = height / len(small)
    for i, each in enumerate(small):
        top = round(i * step + (step - part) / 2)
        whole[top : top + part, width + gap :] = each
    return whole


def signed_legend() -> Legend:
    """Return the colour bar of `signed`."""
    return Legend(colours=_colours(SIGNED), low="−", high="+")


def unsigned_legend() -> Legend:
    """Return the colour bar of `unsigned_maps`."""
    return Legend(colours=_colours(UNSIGNED), low="min", high="max")


def short(value: float, like: float | None = None) -> str:
    """Return a number in as few characters as show its size, with the decimals that `like` (or itself) needs.

    `12`, `1.2`, `0.03`, `2e6`; `short(0.04, like=12)` is `0`.
    """
    size = abs(like if like is not None else value)
    if size == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    if size >= 99999.5 or size < 0.00095:
        mantissa, _, exponent = f"{value:.0e}".partition("e")
        text = f"{mantissa}e{int(exponent)}" if value else "0"
    else:
        decimals = max(0, 1 - math.floor(math.log10(size * 1.0005)))
        text = f"{value:.{decimals}f}"
    text = "0" if not float(text) else text
    return text.replace("-", "−")


def value_range(values: Tensor) -> str:
    """Return the smallest and the largest value as `min…max`, or the one value of a constant map."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        return short(high)
    largest = max(abs(low), abs(high))
    return f"{short(low, largest)}…{short(high, largest)}"


def kernel_tiles(weights: Tensor, size: int | None = None) -> tuple[Pixels, str]:
    """Return a tile for each kernel, and how the kernels are drawn.

    Args:
        weights: `(n, inputs, kh, kw)`.
        size: of the longer side of a tile in pixels; None: one pixel per weight, small enough to be stored for every
            filter and epoch.

    Returns:
        The tiles, `(n, h, w, 3)`, and `colour` or `grey` (the kernel itself, of three inputs or one), `points` (the
        weights of a 1×1 kernel of more inputs, row by row in a square), or `shared` (the pattern that the inputs share
        most and, in a tile of a given size, the slices of the three strongest inputs at its right).
    """
    inputs, height, width = weights.shape[1:]
    if inputs in (1, 3):
        return np.stack([kernel(w, size or max(height, width)) for w in weights]), "colour" if inputs == 3 else "grey"
    if height * width == 1:
        edge = math.ceil(math.sqrt(inputs))
        squares = F.pad(weights.flatten(1), (0, edge * edge - inputs)).reshape(-1, edge, edge)
        return signed_maps(squares, size or edge), "points"
    shared = shared_patterns(weights)[0]
    if size is None:
        return signed_maps(shared, max(height, width)), "shared"
    patterns = signed_maps(shared, size - size // 4 - 2)
    strongest = torch.stack([w[top] for w, top in zip(weights, strongest_inputs(weights, 3), strict=True)])
    number = strongest.shape[1]
    largest = strongest.abs().amax((1, 2, 3)).repeat_interleave(number)
    slices = signed_maps(strongest.flatten(0, 1), size // 4 - 2, largest=largest)
    tiles = [_with_stack(tile, slices[i * number : (i + 1) * number]) for i, tile in enumerate(patterns)]
    return np.stack(tiles), "shared"


def small_maps(maps: Tensor, most: int) -> Tensor:
    """Return maps `(n, h, w)` as uint8 of at most `most` pixels a side: 128 is zero, each map is scaled by itself."""
    factor = max(max(maps.shape[1:]) / most, 1.0)
    height, width = (max(1, round(side / factor)) for side in maps.shape[1:])
    values = F.adaptive_avg_pool2d(maps.float().nan_to_num()[None], (height, width))[0]
    largest = values.abs().amax((1, 2), keepdim=True).clamp_min(1e-12)
    return (128 + 127 * values / largest).round().to(torch.uint8)


def coloured_maps(maps: Tensor) -> Pixels:
    """Return the output of `small_maps`, `(n, h, w)`, as `(n, h, w, 3)`: red positive, blue negative, white zero."""
    values = (maps.float() - 128) / 127
    return signed_maps(values, max(values.shape[1:]), largest=torch.ones(len(values)))


@lru_cache
def _colours(name: str) -> Pixels:
    colours = matplotlib.colormaps[name](np.linspace(0, 1, _LEVELS))[:, :3]
    return np.asarray((colours * 255).round(), dtype=np.uint8)


def _lookup(name: str, levels: np.ndarray[Any, Any]) -> Pixels:
    pixels: Pixels = _colours(name).take(levels, axis=0)  # six times as fast as indexing
    return pixels


def _mapped(values: Tensor, name: str, size: int) -> Pixels:
    if max(values.shape[1:]) > size:
        values = _fit(values, size)
    levels = values.clamp(0, 1).mul_(_LEVELS - 1).round_().to(torch.uint8)
    return _lookup(name, _fit(levels, size).numpy())


def _fit(values: Tensor, size: int, *, smooth: bool = False) -> Tensor:
    """Return maps `(n, h, w)` resized so that the longer side fits into `size` pixels."""
    height, width = values.shape[-2:]
    longest = max(height, width)
    factor = size // longest
    if longest <= size and not smooth and factor * longest >= 0.8 * size:
        # Values become whole pixels of one size, where that wastes little room.
        return values.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
    new = (max(1, round(height * size / longest)), max(1, round(width * size / longest)))
    if longest <= size and not smooth:
        return F.interpolate(values[None], new, mode="nearest-exact")[0]
    return F.interpolate(values[None], new, mode="bicubic" if longest <= size else "bilinear", antialias=True)[0]


def _coloured(values: Tensor, size: int, *, smooth: bool = False) -> Pixels:
    """Return colours `(3, h, w)` as a tile; those outside [0, 1] are clamped."""
    # Bytes in channels-last layout are resized in a seventh of the time.
    pixels = (values.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().permute(2, 0, 1)
    return _fit(pixels, size, smooth=smooth).permute(1, 2, 0).contiguous().numpy()
