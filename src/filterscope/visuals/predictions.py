"""Examples with their true and predicted names."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.probes.activations import probabilities
from filterscope.visuals.draw import BLUE, VERMILION, Cell, grid, shape, side
from filterscope.visuals.lettering import named
from filterscope.visuals.tiles import photo
from filterscope.visuals.visual import Examples, Past, Picture, epoch_label, name_of

_HOW = (
    "Each image with its true name and below it what the network takes it for, with the probability that it gives: "
    "**blue, ✓** where it is right, **orange, ✗** and the other name where it is wrong."
)
_HOW_UNKNOWN = "Each image with what the network takes it for and the probability that it gives."


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Draw examples with true and predicted names, right and wrong ones told apart: `predictions/val`.

    Attributes:
        images: how many examples.
        columns: how many stand side by side at most.
        every: draw every so many epochs, 0: before training only.
    """

    images: int = 8
    columns: int = 4
    every: int = 1
    needs_images: ClassVar[bool] = True

    def __call__(self, classifier: Classifier, examples: Examples, past: Past) -> dict[str, Picture]:
        """Return one picture of what the classifier takes the examples for."""
        if not len(examples):
            raise UserError("predictions need images to look at: give images=[…] or a data set")
        images = examples.images[: self.images]
        labels = examples.labels[: self.images] if examples.labels is not None else None
        names = examples.class_names or classifier.class_names
        picture = draw_predictions(
            images, probabilities(classifier, images), labels, names, columns=self.columns, aside=epoch_label(past)
        )
        return {"predictions/val": picture}


def draw_predictions(
    images: Tensor,
    chances: Tensor,
    labels: Tensor | None,
    class_names: tuple[str, ...],
    *,
    columns: int = 4,
    aside: str = "",
) -> Picture:
    """Draw images `(N, C, H, W)` with the likeliest of their class probabilities `(N, classes)`."""
    columns = shape(len(images), most=columns)
    size = side(columns)
    best, guesses = chances.max(dim=1)
    cells = []
    for i, (image, guess, chance) in enumerate(zip(images, guesses.tolist(), best.tolist(), strict=True)):
        said = named(f"{name_of(guess, class_names)} {chance:.0%}", width=size)
        if labels is None:
            cells.append(Cell(pixels=photo(image, size), caption=said))
            continue
        right = guess == int(labels[i])
        said = (f"{chance:.0%}",) if right else said
        true = named(name_of(int(labels[i]), class_names), width=size)
        cells.append(
            Cell(
                pixels=photo(image, size),
                caption=(*true, *said),
                toned=len(said),
                frame=BLUE if right else VERMILION,
                mark="✓" if right else "✗",
            )
        )
    if labels is None:
        note, how = "what the network takes each image for", _HOW_UNKNOWN
    else:
        hits = int((guesses == labels.cpu()).sum())
        note, how = f"{hits} of {len(images)} right; below the true name what the network says", _HOW
    pixels = grid(cells, columns=columns, title="predictions", aside=aside, notes=[note])
    return Picture(pixels=pixels, description=how)
