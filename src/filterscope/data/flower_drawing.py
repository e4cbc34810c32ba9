"""Flowers drawn by code: petals of a shape, striped at an angle in a colour, before something like foliage."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Color = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Looks:
    """What is drawn, one entry for each flower: all that its class decides.

    `shapes` is int64 `(N,)` into `SHAPES`, `angles` the direction across the stripes in radians, `light` and `dark`
    the two colours of the stripes, `(N, 3)` in [0, 1].
    """

    shapes: Tensor
    angles: Tensor
    light: Tensor
    dark: Tensor

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, part: slice) -> "Looks":
        return Looks(shapes=self.shapes[part], angles=self.angles[part], light=self.light[part], dark=self.dark[part])


SHAPES = ("round", "pointed", "notched")

_GROUNDS: tuple[tuple[Color, Color], ...] = (  # shadow and light of what lies behind
    ((0.05, 0.13, 0.05), (0.32, 0.48, 0.20)),
    ((0.09, 0.15, 0.08), (0.52, 0.55, 0.28)),
    ((0.04, 0.12, 0.10), (0.25, 0.42, 0.34)),
    ((0.14, 0.10, 0.06), (0.50, 0.42, 0.30)),
)


def draw_flowers(looks: Looks, *, size: int, generator: torch.Generator) -> Tensor:
    """Return one flower for each entry, `(N, 3, size, size)` in [0, 1]; what the class leaves open, chance decides.

    Place, size, turn and number of the petals, their colour's shade, the light and the background vary; the stripes'
    angle does not turn with the flower. The same chance gives the same flowers at every size.
    """
    chance = _Chance(len(looks), generator)
    x, y = _grid(size)
    ground = _background(chance, x, y, size)
    cx, cy = chance.between(-0.15, 0.15), chance.between(-0.15, 0.15)
    radius = chance.between(0.72, 0.95)
    px, py = (x - cx) / radius, (y - cy) / radius
    turn, count = chance.between(0.0, 2 * math.pi), _numbers(chance, looks.shapes)
    stripes = _stripes(chance, looks.angles, x, y, size)
    shade = chance.between(0.90, 1.06)
    paint = _mix(looks.dark[:, :, None, None], looks.light[:, :, None, None], stripes[:, None]) * shade[:, None]

    shadow = torch.exp(-((((px - 0.12) ** 2 + (py - 0.16) ** 2) / 0.75) ** 2))
    image = ground * (1 - 0.55 * shadow[:, None])
    half = math.pi / count
    behind = torch.tensor([0.90, 0.55, 0.70])[looks.shapes, None, None]
    for start, length, light in ((turn + half, behind, 0.68), (turn, torch.ones(1), 1.0)):
        cover, relief = _petals(chance, looks.shapes, px, py, start, count, length)
        image = _mix(image, paint * (light * relief)[:, None], cover[:, None])
    image = _center(chance, image, px, py, size)
    return _lit(chance, image, x, y, generator)


class _Chance:
    def __init__(self, count: int, generator: torch.Generator) -> None:
        self.count = count
        self.generator = generator

    def between(self, low: float, high: float) -> Tensor:
        return torch.rand(self.count, 1, 1, generator=self.generator) * (high - low) + low

    def whole(self, low: int, high: int) -> Tensor:
        return torch.randint(low, high, (self.count, 1, 1), generator=self.generator).float()

    def noise(self, cells: int, size: int, octaves: int) -> Tensor:
        """Return smooth noise of about unit range, `(N, size, size)`; `cells` across for its broadest forms."""
        total = torch.zeros(self.count, 1, size, size)
        for octave in range(octaves):
            grid = torch.rand(self.count, 1, cells * 2**octave, cells * 2**octave, generator=self.generator) - 0.5
            total += F.interpolate(grid, size=(size, size), mode="bicubic", align_corners=True) * 0.6**octave
        return total[:, 0]


def _numbers(chance: _Chance, shapes: Tensor) -> Tensor:
    """Return how many petals each flower has; broad ones are fewer."""
    fewest = torch.tensor([5.0, 7.0, 4.0])[shapes]
    return fewest[:, None, None] + chance.whole(0, 2)


def _background(chance: _Chance, x: Tensor, y: Tensor, size: int) -> Tensor:
    which = torch.randint(len(_GROUNDS), (chance.count,), generator=chance.generator)
    low, high = torch.tensor(_GROUNDS)[which].unbind(1)
    tone = (0.42 + 0.75 * chance.noise(3, size, 4)).clamp(0, 1)
    image = _mix(low[:, :, None, None], high[:, :, None, None], tone[:, None])
    for _ in range(4):  # leaves, out of focus
        turn = chance.between(0, 2 * math.pi)
        dx, dy = x - chance.between(-1, 1), y - chance.between(-1, 1)
        along, across = dx * turn.cos() + dy * turn.sin(), dy * turn.cos() - dx * turn.sin()
        length, width = chance.between(0.5, 0.9), chance.between(0.12, 0.26)
        leaf = torch.sigmoid((1 - (along / length) ** 2 - (across / width) ** 2) * chance.between(1.5, 4.0))
        tint = _mix(low, high, chance.between(0.1, 1.0)[:, :, 0])[:, :, None, None] * (1 + 0.35 * across)[:, None]
        image = _mix(image, tint, 0.75 * leaf[:, None])
    return image


def _stripes(chance: _Chance, angles: Tensor, x: Tensor, y: Tensor, size: int) -> Tensor:
    # Not finer than four pixels, or small images could not show them.
    length = torch.clamp(chance.between(0.125, 0.165), min=8.0 / size)
    angle = angles[:, None, None] + chance.between(-0.10, 0.10)
    along = x * angle.cos() + y * angle.sin()
    phase = 2 * math.pi * (along / length + chance.between(0, 1)) + 0.8 * chance.noise(2, size, 1)
    return torch.sigmoid(chance.between(3.0, 6.0) * phase.sin()) * chance.between(0.9, 1.0)


def _petals(
    chance: _Chance, shapes: Tensor, px: Tensor, py: Tensor, turn: Tensor, count: Tensor, length: Tensor
) -> tuple[Tensor, Tensor]:
    """Return how much of each pixel the petals cover, and how much light they reflect."""
    spacing = 2 * math.pi / count
    angle = torch.atan2(py, px) - turn
    number = torch.round(angle / spacing)
    local = angle - number * spacing
    lengths = 1 + 0.10 * (torch.rand(chance.count, 16, generator=chance.generator) - 0.5)
    index = (number.long() % count.long()).flatten(1)
    r = torch.hypot(px, py) / (length * lengths.gather(1, index).view_as(px))
    u, v = r * local.cos(), r * local.sin()
    wide = 6.0 / count  # more petals, slimmer ones
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


def _center(chance: _Chance, image: Tensor, px: Tensor, py: Tensor, size: int) -> Tensor:
    radius = chance.between(0.17, 0.24)
    r = torch.hypot(px, py)
    dots = chance.noise(24, size, 2)
    color = torch.tensor([0.62, 0.46, 0.12])[:, None, None] * chance.between(0.7, 1.15)[:, None]
    tone = (0.95 - 0.5 * (r / radius) ** 2 + 0.9 * dots).clamp(0.1, 1.6)
    edge = torch.sigmoid((radius - r) * 0.4 * size)
    rim = torch.exp(-(((r - radius) / 0.07) ** 2)) * (1 - edge)
    return _mix(image * (1 - 0.45 * rim[:, None]), color * tone[:, None], edge[:, None])


def _lit(chance: _Chance, image: Tensor, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    turn = chance.between(0, 2 * math.pi)
    light = chance.between(0.98, 1.22) * (1 + chance.between(0.0, 0.18) * (x * turn.cos() + y * turn.sin()))
    balance = 1 + 0.05 * (torch.rand(chance.count, 3, 1, 1, generator=generator) - 0.5)
    grain = 0.02 * torch.randn(image.shape, generator=generator)
    return (image * light[:, None] * balance + grain).clamp(0, 1)


def _grid(size: int) -> tuple[Tensor, Tensor]:
    line = (torch.arange(size, dtype=torch.float32) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    return x[None], y[None]


def _mix(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    return first + (second - first) * share
