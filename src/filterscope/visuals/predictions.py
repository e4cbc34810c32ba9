"""Examples with their true and predicted names."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from filterscope.analysis.activations import probabilities, published_probabilities
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.registry import register
from filterscope.visuals.drawing.grid import (
    BLUE,
    VERMILION,
    YELLOW,
    Cell,
    grid,
    shape,
    side,
)
from filterscope.visuals.drawing.text import named
from filterscope.visuals.drawing.tiles import photo
from filterscope.visuals.output.outputs import Picture
from filterscope.visuals.visual import Every, Examples, Visual, VisualState, epoch_label, example_name, name_of

_HOW = (
    "Each image with its true name and below it what the network takes it for, with the probability that it gives: "
    "**blue, ✓** where it is right, **orange, ✗** and the other name where it is wrong."
)
_HOW_UNKNOWN = "Each image with what the network takes it for and the probability that it gives."
_HOW_PUBLISHED = (
    "Each image with its true name and below it which of the categories that it was published with the network takes "
    "it for, before any training here, with the probability that it gives. Most of these categories are no classes of "
    "the data, so there is no right and wrong."
)


@register("visual", "predictions")
@dataclass(frozen=True, kw_only=True)
class Predictions(Visual):
    """Draw examples with true and predicted names, right and wrong ones told apart: `predictions/val`.

    Attributes:
        images: how many examples.
        columns: how many stand side by side at most.
        every: draw every so many epochs, 0: before training only.
    """

    images: int = 8
    columns: int = 4
    needs_images: ClassVar[bool] = True

    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> dict[str, Picture]:
        """Return one picture of what the classifier takes the examples for."""
        if not len(examples):
            raise UserError("predictions need images to look at: give images=[…] or a data set")
        images = examples.images[: self.images]
        labels = examples.labels[: self.images] if examples.labels is not None else None
        names = examples.class_names or classifier.class_names
        picture = draw_predictions(
            images, probabilities(classifier, images), labels, names, columns=self.columns, aside=epoch_label(state)
        )
        return {"predictions/val": picture}


@register("visual", "imagenet")
@dataclass(frozen=True, kw_only=True)
class Published(Visual):
    """Draw what the published network takes examples for, before it is finetuned: `predictions/imagenet`.

    Attributes:
        images: how many examples.
        columns: how many stand side by side at most.
        every: 0: before training only; afterwards the network is no longer what was published.
    """

    images: int = 8
    columns: int = 4
    every: Every = 0
    needs_images: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse to be drawn when the network is another one."""
        if self.every:
            raise UserError(f"visuals.imagenet.every={self.every}: only 0, before training, has a meaning")

    def unsupported_reason(self, classifier: Classifier) -> str:
        """Return why this network cannot be asked, empty where it can."""
        return classifier.unpublished

    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> dict[str, Picture]:
        """Return one picture of what the published network takes the examples for."""
        images = examples.images[: self.images]
        picture = draw_published(
            images,
            published_probabilities(classifier, images),
            [example_name(examples, i) for i in range(len(images))],
            classifier.backbone.categories,
            columns=self.columns,
            aside=epoch_label(state),
        )
        return {"predictions/imagenet": picture}


def draw_published(
    images: Tensor,
    chances: Tensor,
    names: Sequence[str],
    categories: Sequence[str],
    *,
    columns: int = 4,
    aside: str = "",
) -> Picture:
    """Draw images `(N, C, H, W)` under their own names with the likeliest published category of each."""
    columns = shape(len(images), most=columns)
    size = side(columns)
    best, guesses = chances.max(dim=1)
    cells = []
    for image, name, guess, chance in zip(images, names, guesses.tolist(), best.tolist(), strict=True):
        said = named(f"{categories[guess]} {chance:.0%}", width=size)
        caption = (*named(name, width=size), *said)
        cells.append(Cell(pixels=photo(image, size), caption=caption, toned=len(said), frame=YELLOW))
    note = "as published, before finetuning; below the true name the likeliest category"
    drawn = grid(cells, columns=columns, title="published network", aside=aside, notes=[note])
    return Picture(drawn=drawn, description=_HOW_PUBLISHED)


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
    drawn = grid(cells, columns=columns, title="predictions", aside=aside, notes=[note])
    return Picture(drawn=drawn, description=how)
