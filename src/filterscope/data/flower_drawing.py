"""Draw flowers: petals of a shape with stripes of an angle and colour, in front of blurred leaves."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Color = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Appearance:
    """The properties of N flowers that their classes decide.

    Args:
        shapes: indices into `SHAPES`, int64 `(N,)`.
        angles: the directions across the stripes in radians, `(N,)`.
        light: the lighter colours of the stripes, `(N, 3)` in [0, 1].
        dark: the darker colours of the stripes, `(N, 3)` in [0, 1].
    """

    shapes: Tensor
    angles: Tensor
    light: Tensor
    dark: Tensor

    def __len__(self) -> int:
        return len(self.shapes)


SHAPES = ("round", "pointed", "notched")

_BACKGROUNDS: tuple[tuple[Color, Color], ...] = (  # dark and light colour of the background
    ((0.05, 0.13, 0.05), (0.32, 0.48, 0.20)),
    ((0.09, 0.15, 0.08), (0.52, 0.55, 0.28)),
    ((0.04, 0.12, 0.10), (0.25, 0.42, 0.34)),
    ((0.14, 0.10, 0.06), (0.50, 0.42, 0.30)),
)


def draw_flowers(appearance: Appearance, *, size: int, generator: torch.Generator) -> Tensor:
    """Draw flowers whose position, size, rotation, number of petals, shade, light and background are random.

    The stripes do not rotate with the flower. The same random state gives the same flowers at every size.

    Args:
        appearance: of N flowers.
        size: height and width in pixels.
        generator: the source of randomness.

    Returns:
        `(N, 3, size, size)` in [0, 1].
    """
    rng = _Random(len(appearance), generator)
    x, y = _coordinates(size)
    background = _background(rng, x, y, size)
    cx, cy = rng.uniform(-0.15, 0.15), rng.uniform(-0.15, 0.15)
    radius = rng.uniform(0.72, 0.95)
    px, py = (x - cx) / radius, (y - cy) / radius
    rotation, count = rng.uniform(0.0, 2 * math.pi), _petal_counts(rng, appearance.shapes)
    stripes = _stripes(rng, appearance.angles, x, y, size)
    shade = rng.uniform(0.90, 1.06)
    paint = (
        _mix(appearance.dark[:, :, None, None], appearance.light[:, :, None, None], stripes[:, None]) * shade[:, None]
    )

    shadow = torch.exp(-((((px - 0.12) ** 2 + (py - 0.16) ** 2) / 0.75) ** 2))
    image = background * (1 - 0.55 * shadow[:, None])
    half = math.pi / count
    back_length = torch.tensor([0.90, 0.55, 0.70])[appearance.shapes, None, None]
    for start, length, light in ((rotation + half, back_length, 0.68), (rotation, torch.ones(1), 1.0)):
        cover, relief = _petals(rng, appearance.shapes, px, py, start, count, length)
        image = _mix(image, paint * (light * relief)[:, None], cover[:, None])
    image = _center(rng, image, px, py, size)
    return _add_light(rng, image, x, y, generator)


class _Random:
    def __init__(self, count: int, generator: torch.Generator) -> None:
        self.count = count
        self.generator = generator

    def uniform(self, low: float, high: float) -> Tensor:
        return torch.rand(self.count, 1, 1, generator=self.generator) * (high - low) + low

    def integer(self, low: int, high: int) -> Tensor:
        return torch.randint(low, high, (self.count, 1, 1), generator=self.generator).float()

    def noise(self, cells: int, size: int, octaves: int) -> Tensor:
        """Return smooth noise, `(N, size, size)`, roughly in ±0.5; its coarsest octave has `cells` cells a side."""
        total = torch.zeros(self.count, 1, size, size)
        for octave in range(octaves):
            grid = torch.rand(self.count, 1, cells * 2**octave, cells * 2**octave, generator=self.generator) - 0.5
            total += F.interpolate(grid, size=(size, size), mode="bicubic", align_corners=True) * 0.6**octave
        return total[:, 0]


def _petal_counts(rng: _Random, shapes: Tensor) -> Tensor:
    """Return the number of petals of each flower; shapes with broad petals have fewer."""
    fewest = torch.tensor([5.0, 7.0, 4.0])[shapes]
    return fewest[:, None, None] + rng.integer(0, 2)


def _background(rng: _Random, x: Tensor, y: Tensor, size: int) -> Tensor:
    which = torch.randint(len(_BACKGROUNDS), (rng.count,), generator=rng.generator)
    low, high = torch.tensor(_BACKGROUNDS)[which].unbind(1)
    tone = (0.42 + 0.75 * rng.noise(3, size, 4)).clamp(0, 1)
    image = _mix(low[:, :, None, None], high[:, :, None, None], tone[:, None])
    for _ in range(4):  # blurred leaves
        rotation = rng.uniform(0, 2 * math.pi)
        dx, dy = x - rng.uniform(-1, 1), y - rng.uniform(-1, 1)
        along, across = dx * rotation.cos() + dy * rotation.sin(), dy * rotation.cos() - dx * rotation.sin()
        length, width = rng.uniform(0.5, 0.9), rng.uniform(0.12, 0.26)
        leaf = torch.sigmoid((1 - (along / length) ** 2 - (across / width) ** 2) * rng.uniform(1.5, 4.0))
        tint = _mix(low, high, rng.uniform(0.1, 1.0)[:, :, 0])[:, :, None, None] * (1 + 0.35 * across)[:, None]
        image = _mix(image, tint, 0.75 * leaf[:, None])
    return image


def _stripes(rng: _Random, angles: Tensor, x: Tensor, y: Tensor, size: int) -> Tensor:
    # At least four pixels wide, or small images could not show them.
    length = torch.clamp(rng.uniform(0.125, 0.165), min=8.0 / size)
    angle = angles[:, None, None] + rng.uniform(-0.10, 0.10)
    along = x * angle.cos() + y * angle.sin()
    phase = 2 * math.pi * (along / length + rng.uniform(0, 1)) + 0.8 * rng.noise(2, size, 1)
    return torch.sigmoid(rng.uniform(3.0, 6.0) * phase.sin()) * rng.uniform(0.9, 1.0)


def _petals(
    rng: _Random, shapes: Tensor, px: Tensor, py: Tensor, rotation: Tensor, count: Tensor, length: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the petals' coverage of each pixel in [0, 1] and their brightness, both `(N, size, size)`."""
    spacing = 2 * math.pi / count
    angle = torch.atan2(py, px) - rotation
    number = torch.round(angle / spacing)
    local = angle - number * spacing
    lengths = 1 + 0.10 * (torch.rand(rng.count, 16, generator=rng.generator) - 0.5)
    index = (number.long() % count.long()).flatten(1)
    r = torch.hypot(px, py) / (length * lengths.gather(1, index).view_as(px))
    u, v = r * local.cos(), r * local.sin()
    wide = 6.0 / count  # the more petals, the narrower they are
    inside = torch.stack([_round(u, v / wide), _pointed(u, v / wide), _notched(u, v / wide)])
    inside = inside[shapes, torch.arange(len(shapes))]
    dy, dx = torch.gradient(inside, dim=(1, 2))
    cover = (0.5 + inside / torch.hypot(dx, dy).clamp_min(1e-4)).clamp(0, 1)
    relief = 0.62 + 0.38 * torch.sigmoid(6 * (r - 0.35)) - 0.55 * (v / spacing.clamp_min(0.5)) ** 2
    return cover, relief - 0.10 * torch.exp(-((v / 0.035) ** 2)) * (u > 0)


def _round(u: Tensor, v: Tensor) -> Tensor:
    return 1 - ((u - 0.58) / 0.42) ** 2 - (v / 0.36) ** 2


def _pointed(u: Tensor, v: Tensor) -> Tensor:
    along = ((u - 0.05) / 0.95).clamp(-0.5, 1.5)
    return 2.6 * (0.19 * torch.sin(math.pi * along.clamp(0, 1) ** 0.85) - v.abs() - (along - along.clamp(0, 1)).abs())


def _notched(u: Tensor, v: Tensor) -> Tensor:
    lobe = 1 - ((u - 0.76) / 0.24) ** 2 - ((v.abs() - 0.17) / 0.18) ** 2
    stem = 4 * (0.42 * u.clamp(0, 0.74) - v.abs() - 2 * (u - 0.74).clamp_min(0))
    return torch.maximum(lobe, stem)


def _center(rng: _Random, image: Tensor, px: Tensor, py: Tensor, size: int) -> Tensor:
    radius = rng.uniform(0.17, 0.24)
    r = torch.hypot(px, py)
    dots = rng.noise(24, size, 2)
    color = torch.tensor([0.62, 0.46, 0.12])[:, None, None] * rng.uniform(0.7, 1.15)[:, None]
    tone = (0.95 - 0.5 * (r / radius) ** 2 + 0.9 * dots).clamp(0.1, 1.6)
    edge = torch.sigmoid((radius - r) * 0.4 * size)
    rim = torch.exp(-(((r - radius) / 0.07) ** 2)) * (1 - edge)
    return _mix(image * (1 - 0.45 * rim[:, None]), color * tone[:, None], edge[:, None])


def _add_light(rng: _Random, image: Tensor, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    rotation = rng.uniform(0, 2 * math.pi)
    light = rng.uniform(0.98, 1.22) * (1 + rng.uniform(0.0, 0.18) * (x * rotation.cos() + y * rotation.sin()))
    balance = 1 + 0.05 * (torch.rand(rng.count, 3, 1, 1, generator=generator) - 0.5)
    grain = 0.02 * torch.randn(image.shape, generator=generator)
    return (image * light[:, None] * balance + grain).clamp(0, 1)


def _coordinates(size: int) -> tuple[Tensor, Tensor]:
    line = (torch.arange(size, dtype=torch.float32) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    return x[None], y[None]


def _mix(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    return first + (second - first) * share
