"""Tensors to tiles: every scale is said, no value wraps, a constant map is no accident."""

import math
from collections.abc import Sequence
from functools import lru_cache

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from filterscope.visuals.drawing.grid import BACKGROUND, EDGE, FAINT, Legend
from filterscope.visuals.drawing.pixels import Indexed, Pixels

# Of a map, zero in the middle: neighbours cannot be told apart, and half a PNG's palette is left for letters and
# photographs.
LEVELS = 127
SIGNED = "RdBu_r"
UNSIGNED = "viridis"


def photo(image: Tensor, size: int) -> Pixels:
    """Return an image `(C, H, W)` in [0, 1], grey or colour, as a tile that fits into `size` × `size` pixels.

    Values outside [0, 1] are clamped. Small images are enlarged without blur, large ones shrunk with a filter.
    """
    values = image.detach().float().cpu().nan_to_num().clamp(0, 1)
    values = values.expand(3, -1, -1) if len(values) == 1 else values[:3]
    return _coloured(values, size, smooth=max(values.shape[-2:]) >= 64)


def few_colours(tiles: Sequence[Pixels], count: int = 96) -> list[Indexed]:
    """Return the tiles in at most `count` colours between them, dithered, for a picture that is to have a palette."""
    return list(_few_colours(tuple((tile.shape, tile.tobytes()) for tile in tiles), count))


# A photograph stands beside the maps of every layer, in every epoch.
@lru_cache(maxsize=64)
def _few_colours(tiles: tuple[tuple[tuple[int, ...], bytes], ...], count: int) -> tuple[Indexed, ...]:
    height, width = sum(shape[0] for shape, _ in tiles), max(shape[1] for shape, _ in tiles)
    whole, tops = Image.new("RGB", (width, height)), [0]
    for shape, content in tiles:
        whole.paste(Image.frombytes("RGB", (shape[1], shape[0]), content), (0, tops[-1]))
        tops.append(tops[-1] + shape[0])
    dithered = whole.quantize(
        palette=whole.quantize(count, method=Image.Quantize.FASTOCTREE), dither=Image.Dither.FLOYDSTEINBERG
    )
    drawn = Indexed(
        places=np.asarray(dithered), palette=np.array(dithered.getpalette(), np.uint8).reshape(-1, 3)[:count]
    )
    return tuple(drawn[top : top + shape[0], : shape[1]] for (shape, _), top in zip(tiles, tops, strict=False))


def kernel(values: Tensor, size: int) -> Pixels:
    """Return a kernel `(1 or 3, h, w)` as grey or colour, mid-grey where it is zero, scaled by its largest weight."""
    values = values.detach().float().cpu().nan_to_num()
    scaled = 0.5 + 0.5 * values / values.abs().max().clamp_min(1e-12)
    return _coloured(scaled.expand(3, -1, -1), size)


def signed(values: Tensor, size: int, *, largest: float | None = None) -> Indexed:
    """Return a map `(h, w)` from blue (negative) over white (zero) to red (positive).

    The scale is symmetric: `largest` is the value of full red, by default the map's own largest absolute value.
    """
    return signed_maps(values[None], size, largest=None if largest is None else torch.tensor([largest]))[0]


def signed_maps(maps: Tensor, size: int, *, largest: Tensor | None = None) -> Indexed:
    """Return maps `(n, h, w)` as tiles `(n, height, width, 3)` as `signed` does; `largest` has one entry for each."""
    values = maps.detach().float().cpu().nan_to_num()
    top = values.abs().amax((1, 2)) if largest is None else largest.float().cpu()
    return _mapped(0.5 + 0.5 * (values / top.clamp_min(1e-12)[:, None, None]), SIGNED, size)


def unsigned_maps(maps: Tensor, size: int) -> Indexed:
    """Return maps `(n, h, w)` as tiles `(n, height, width, 3)`, each from its own minimum (dark) to its own maximum.

    A constant map is all dark.
    """
    values = maps.detach().float().cpu().nan_to_num()
    low, high = values.amin((1, 2), keepdim=True), values.amax((1, 2), keepdim=True)
    return _mapped((values - low) / (high - low).clamp_min(1e-12), UNSIGNED, size)


def warmth(values: Tensor) -> Pixels:
    """Return values `(h, w)` in [0, 1] in the colours of `unsigned_maps`, a pixel each."""
    pixels: Pixels = _colours(UNSIGNED)[(values.clamp(0, 1) * (LEVELS - 1)).round().long().cpu().numpy()]
    return pixels


def bars(values: Tensor, width: int, height: int) -> Indexed:
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
    places = np.zeros((height, width), np.uint8)
    places[(y > 0) & (y <= level)] = 1
    places[(y < 0) & (y >= level)] = 2
    wide = width // max(len(values), 1)
    if wide >= 4:  # a dark line between bars, where there is room for one
        places[:, np.flatnonzero(np.diff(owner))] += 4
    zero = min(round(high / span * height), height - 1)
    places[max(zero - 1, 0) : zero + 1] = 3
    ground = [(b + e) // 3 for b, e in zip(BACKGROUND, EDGE, strict=True)]
    colours = np.array([ground, _colours(SIGNED)[107], _colours(SIGNED)[26], FAINT], np.uint8)
    return Indexed(places=places, palette=np.concatenate([colours, colours // 3]))


def side_by_side(left: Indexed, right: Indexed, gap: int = 3) -> Indexed:
    """Return a tile with smaller ones `(n, h, w, 3)` of the same palette stacked at its right side."""
    height, width = left.shape[:2]
    _, small, wide, _ = right.shape
    ground = len(left.palette)
    whole = np.full((height, width + gap + wide), ground, dtype=np.uint8)
    whole[:, :width] = left.places
    step = height / len(right)
    for i, tile in enumerate(right.places):
        top = round(i * step + (step - small) / 2)
        whole[top : top + small, width + gap :] = tile
    return Indexed(places=whole, palette=np.concatenate([left.palette, np.array([BACKGROUND], np.uint8)]))


def signed_legend(low: str = "−", high: str = "+") -> Legend:
    """Return the colour bar of `signed`."""
    return Legend(colours=_colours(SIGNED), low=low, high=high)


def unsigned_legend(low: str = "min", high: str = "max") -> Legend:
    """Return the colour bar of `unsigned_maps`."""
    return Legend(colours=_colours(UNSIGNED), low=low, high=high)


def short(value: float, like: float | None = None) -> str:
    """Return a number in as few characters as say its size, with the decimals that `like` (or itself) needs.

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


@lru_cache
def _colours(name: str) -> Pixels:
    colours = matplotlib.colormaps[name](np.linspace(0, 1, LEVELS))[:, :3]
    return np.asarray((colours * 255).round(), dtype=np.uint8)


def _mapped(values: Tensor, name: str, size: int) -> Indexed:
    if max(values.shape[1:]) > size:
        values = _fit(values, size)
    levels = values.clamp(0, 1).mul_(LEVELS - 1).round_().to(torch.uint8)
    return Indexed(places=_fit(levels, size).numpy(), palette=_colours(name))


def _fit(values: Tensor, size: int, *, smooth: bool = False) -> Tensor:
    height, width = values.shape[-2:]
    longest = max(height, width)
    if longest <= size:
        factor = size // longest
        if (
            not smooth and factor * longest >= 0.8 * size
        ):  # whole pixels, all of one size, where that wastes little room
            return values.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
        new = (max(1, round(height * size / longest)), max(1, round(width * size / longest)))
        if smooth:
            return F.interpolate(values[None], new, mode="bicubic", antialias=True)[0]
        return F.interpolate(values[None], new, mode="nearest-exact")[0]
    new = (max(1, round(height * size / longest)), max(1, round(width * size / longest)))
    return F.interpolate(values[None], new, mode="bilinear", antialias=True)[0]


def _coloured(values: Tensor, size: int, *, smooth: bool = False) -> Pixels:
    """Return colours `(3, h, w)` as a tile; those outside [0, 1] are clamped."""
    # Bytes with a pixel's colours side by side are resized in a seventh of the time.
    pixels = (values.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().permute(2, 0, 1)
    return _fit(pixels, size, smooth=smooth).permute(1, 2, 0).contiguous().numpy()
