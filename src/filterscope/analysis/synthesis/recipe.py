"""The recipe: every option that decides how a picture is optimized."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from filterscope.errors import UserError
from filterscope.registry import check_fields, find, registered

Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to make a picture that maximizes an objective.

    Args:
        objective: the name of a registered objective, or weights of several, `{channel: 1.0, diversity: 0.5}`; a
            negative weight minimizes.
        likeness: weight of the likeness to real images that `natural` adds: how much the layer and the layers before it
            respond to the picture as they do to the real images that activate the channel most.
        parameterization: what is optimized: `fourier` coefficients or `pixels`.
        size: height and width of the picture in pixels.
        crop: height and width of the random part of a larger picture that the network sees in each step, except in the
            last, `untransformed` ones; None: the whole picture.
        steps: number of optimization steps; as many more for a `natural` picture weaker than the best real image.
        learning_rate: of Adam, or the length of a normalized gradient step.
        anneal: fraction of the steps, at the end, over which the learning rate falls linearly to 0.
        optimizer: `adam`, or `normalized`: gradient ascent with each picture's gradient scaled to length 1.
        start: `noise` (normal, standard deviation 0.01, in the parameters) or `uniform` pixels in [0, 1).
        bounded: keep pixels in [0, 1] by a sigmoid; otherwise they are unbounded.
        decorrelate: optimize colours along the axes in which natural images vary.
        normalize: let the backbone normalize the pixels as it does with real images.
        jitter: largest random shift in pixels.
        scale: largest random relative change of size.
        rotate: largest random rotation in degrees.
        untransformed: fraction of the steps, at the end, in which the picture is not shifted, scaled or rotated.
        fade: fade to the mean colour where the finished picture does not activate the channel
            (`SynthesisResult.importance`). A picture that would lose more than a tenth of its activation stays whole.
        leaky_slope: slope of ReLUs for negative inputs during the leaky warm-up, and weight of the dead-unit term,
            so that a channel that is inactive at first still has a gradient.
        leaky_steps: length of the leaky warm-up in steps.
        precision: `bf16`, `fp32`, or `auto`: bf16 where the processor supports it.
        memory: limit on the activations of one micro-batch, in GiB.

    Raises:
        UserError: an option has a value of another type or out of its range, or an objective is not registered.
    """

    objective: str | Mapping[str, float] = "natural"
    likeness: NonNegativeFloat = 3.0
    parameterization: Literal["fourier", "pixels"] = "fourier"
    size: PositiveInt = 128
    crop: PositiveInt | None = 128
    steps: PositiveInt = 100
    learning_rate: NonNegativeFloat = 0.1
    anneal: Share = 0.5
    optimizer: Literal["adam", "normalized"] = "adam"
    start: Literal["noise", "uniform"] = "noise"
    bounded: bool = True
    decorrelate: bool = True
    normalize: bool = True
    jitter: NonNegativeFloat = 8.0
    scale: NonNegativeFloat = 0.1
    rotate: NonNegativeFloat = 10.0
    untransformed: Share = 0.1
    fade: bool = False
    leaky_slope: NonNegativeFloat = 0.05
    leaky_steps: NonNegativeInt = 24
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    memory: NonNegativeFloat = 1.0

    def __post_init__(self) -> None:
        check_fields(self, where="recipe")
        if not self.weights:
            raise UserError(f"recipe.objective is empty; possible are {', '.join(registered('objective'))}")
        for name in self.weights:
            try:
                find("objective", name)
            except UserError as error:
                raise UserError(f"recipe.objective: {error}") from error

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each objective, by name."""
        return {self.objective: 1.0} if isinstance(self.objective, str) else dict(self.objective)

    @property
    def compares_samples(self) -> bool:
        """Whether an objective compares the samples of a channel, which must then be optimized together."""
        return any(objective_compares(name) for name in self.weights)

    @property
    def minimizes(self) -> bool:
        """Whether the channel's activation is minimized."""
        return sum(weight for name, weight in self.weights.items() if not objective_compares(name)) < 0

    @property
    def transforms(self) -> bool:
        """Whether pictures are shifted, scaled or rotated at random while they are optimized."""
        return bool(self.jitter or self.scale or self.rotate or self.seen < self.size)

    @property
    def seen(self) -> int:
        """Height and width in pixels of what the network sees in each step."""
        return min(self.crop or self.size, self.size)

    @property
    def passes(self) -> float:
        """The computation of a picture, in forward passes of the whole picture."""
        part = (self.seen / self.size) ** 2
        return 2 * self.steps * (self.untransformed + (1 - self.untransformed) * part)


def objective_compares(objective: str) -> bool:
    """Return whether a registered objective compares the samples of a channel (`objectives.compares_samples`)."""
    return getattr(find("objective", objective), "compares_samples", False)
