"""A recipe is everything that decides how a picture is synthesized, but not of what."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from filterscope.errors import UserError, suggestion

OBJECTIVES = ("channel", "specific", "neuron", "logit", "diversity")
_CHOICES = {
    "image": ("fourier", "pixels"),
    "start": ("noise", "uniform"),
    "ascent": ("adam", "normalized"),
    "precision": ("auto", "fp32", "bf16"),
}
_AT_LEAST = {
    "size": 1, "steps": 1, "learning_rate": 0.0, "anneal": 0.0, "jitter": 0.0, "scale": 0.0, "rotate": 0.0,
    "settle": 0.0, "leak": 0.0, "leak_steps": 0, "total_variation": 0.0, "l2": 0.0, "blur": 0.0, "blur_every": 1,
    "memory": 0.0,
}  # fmt: skip
_SHARES = ("anneal", "settle")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to synthesize a picture.

    Args:
        objective: one of `channel specific neuron logit diversity`, or weights of several, `{channel: 1.0, diversity:
            -0.5}`; a negative weight descends.
        image: what ascends: `fourier` coefficients or `pixels`.
        size: of the picture, in pixels.
        steps: of ascent.
        learning_rate: step of Adam, or the length of a step of normalized ascent.
        anneal: over which share of the steps, at the end, the learning rate falls to nought, 0 to 1.
        ascent: `adam`, or `normalized`: the gradient of each picture scaled to length one.
        start: `noise` (normal, sd 0.01, in the parameters) or `uniform` pixels in [0, 1).
        bounded: keep pixels in [0, 1] with a sigmoid; otherwise nothing bounds them.
        decorrelate: let colours ascend along the axes in which natural images vary.
        normalize: let the backbone normalise the pixels as it does with real images.
        jitter: largest shift, pixels.
        scale: largest relative change of size.
        rotate: largest angle, degrees.
        settle: over which share of the steps, at the end, the network sees the picture itself, not shifted, scaled or
            rotated, 0 to 1.
        leak: slope for negative activations in the first `leak_steps` steps, so that a dead start can rise.
        leak_steps: how many.
        total_variation: weight of the mean absolute difference of neighbouring pixels, taken off the objective.
        l2: weight of the mean squared distance of the pixels from grey, taken off the objective.
        blur: sd in pixels of a Gaussian blur of the parameters (of `pixels` only); 0: none.
        blur_every: how many steps lie between two blurs.
        precision: `bf16`, `fp32`, or `auto`: bf16 where the processor computes in it.
        memory: how much the activations of one micro-batch may take, GiB.
    """

    objective: str | Mapping[str, float] = "specific"
    image: str = "fourier"
    size: int = 128
    steps: int = 128
    learning_rate: float = 0.1
    anneal: float = 0.5
    ascent: str = "adam"
    start: str = "noise"
    bounded: bool = True
    decorrelate: bool = True
    normalize: bool = True
    jitter: float = 8.0
    scale: float = 0.1
    rotate: float = 10.0
    settle: float = 0.1
    leak: float = 0.05
    leak_steps: int = 24
    total_variation: float = 0.0
    l2: float = 0.0
    blur: float = 0.0
    blur_every: int = 4
    precision: str = "auto"
    memory: float = 1.0

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise UserError(f"recipe.{name}={getattr(self, name)!r}; possible are {', '.join(choices)}")
        for name, least in _AT_LEAST.items():
            if not _number(getattr(self, name)) or getattr(self, name) < least:
                raise UserError(f"recipe.{name}={getattr(self, name)!r}; it must be a number of at least {least}")
        for name in _SHARES:
            if getattr(self, name) > 1.0:
                raise UserError(f"recipe.{name}={getattr(self, name)!r}; it is a share of the steps, 0 to 1")
        for name in ("bounded", "decorrelate", "normalize"):
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"recipe.{name}={getattr(self, name)!r}; possible are true and false")
        for name in ("size", "steps", "leak_steps", "blur_every"):
            if not isinstance(getattr(self, name), int):
                raise UserError(f"recipe.{name}={getattr(self, name)!r}; it must be a whole number")
        for name, weight in self.weights.items():
            if name not in OBJECTIVES:
                known = f"{suggestion(name, OBJECTIVES)}; possible are {', '.join(OBJECTIVES)}"
                raise UserError(f"recipe.objective: {name!r} is unknown{known}")
            if not _number(weight):
                raise UserError(f"recipe.objective: the weight of {name} is {weight!r}; it must be a number")
        if not self.weights:
            raise UserError(f"recipe.objective names nothing to ascend; possible are {', '.join(OBJECTIVES)}")

    @property
    def weights(self) -> dict[str, float]:
        """The objective as weights by name."""
        return {self.objective: 1.0} if isinstance(self.objective, str) else dict(self.objective)

    @property
    def compares(self) -> bool:
        """Whether all pictures of a channel must ascend together, to be held apart."""
        return "diversity" in self.weights

    @property
    def descends(self) -> bool:
        """Whether pictures shall excite their channel as little as they can."""
        return sum(weight for name, weight in self.weights.items() if name != "diversity") < 0

    @property
    def transforms(self) -> bool:
        """Whether pictures are shifted, scaled or rotated while they ascend."""
        return bool(self.jitter or self.scale or self.rotate)

    def as_dict(self) -> dict[str, Any]:
        """Return the knobs by name, plain."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
