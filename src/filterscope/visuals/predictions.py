"""Draw examples with their true and predicted class names."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import PositiveInt
from torch import Tensor

from filterscope.analysis.activations import network_outputs, probabilities, published_probabilities
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.registry import register
from filterscope.visuals.drawing.grid import BLUE, VERMILION, YELLOW, Cell, column_count, grid, tile_size
from filterscope.visuals.drawing.text import caption_lines
from filterscope.visuals.drawing.tiles import photo, short
from filterscope.visuals.examples import draw_images
from filterscope.visuals.output.outputs import Picture
from filterscope.visuals.visual import Examples, Visual, VisualState, epoch_label, example_name, name_of

_EXPLANATION = (
    "Each image with its true class and, below it, the predicted class with its probability: **blue, ✓** if the "
    "prediction is right, **orange, ✗** and the other name if it is wrong."
)
_EXPLANATION_UNLABELLED = "Each image with the predicted class and its probability."
_NOTE_NUMBERS = (
    "the network's only output; with labels of 0 and 1 or two class names it is the logit of the second class"
)
_EXPLANATION_PUBLISHED = (
    "Each image with its true class and, below it, the category that the published network predicts for it, with its "
    "probability, before any training here. Most of these categories are not classes of the data, so a prediction is "
    "neither right nor wrong."
)


@register("visual", "predictions")
@dataclass(frozen=True, kw_only=True)
class Predictions(Visual):
    """Draw examples with true and predicted names, and mark right and wrong predictions: `predictions/val`.

    Attributes:
        images: the number of examples.
        columns: images per row, at most.
    """

    images: PositiveInt = 8
    columns: PositiveInt = 4
    needs_images: ClassVar[bool] = True

    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> dict[str, Picture]:
        """Return one picture of the predictions."""
        if not len(examples):
            raise UserError("predictions need images: give images=[…] or a data set")
        images = examples.images[: self.images]
        labels = examples.labels[: self.images] if examples.labels is not None else None
        names = examples.class_names or classifier.class_names
        binary = len(names) == 2 or (labels is not None and int(labels.max()) <= 1)
        if classifier.num_classes == 1 and not binary:  # it may be an age or a score instead of a class
            numbers = draw_images(
                images,
                [short(value) for value in network_outputs(classifier, images).flatten().tolist()],
                title="output",
                note=_NOTE_NUMBERS,
                columns=self.columns,
                description="Each image with the number that the network outputs for it.",
            )
            return {"predictions/val": numbers}
        picture = draw_predictions(
            images,
            probabilities(classifier, images),
            labels,
            names,
            columns=self.columns,
            header_note=epoch_label(state),
        )
        return {"predictions/val": picture}


@register("visual", "imagenet")
@dataclass(frozen=True, kw_only=True)
class Published(Visual):
    """Draw the predictions of the published network, before it is finetuned: `predictions/imagenet`.

    Attributes:
        images: the number of examples.
        columns: images per row, at most.
        every: always 0 (before training only), because training changes the published network.
    """

    images: PositiveInt = 8
    columns: PositiveInt = 4
    every: Literal[0] = 0
    needs_images: ClassVar[bool] = True

    def unsupported_reason(self, classifier: Classifier) -> str:
        """Return why the network has no published categories, or an empty text if it has."""
        return classifier.unpublished

    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> dict[str, Picture]:
        """Return one picture of the published network's predictions."""
        images = examples.images[: self.images]
        columns = column_count(len(images), most=self.columns)
        size = tile_size(columns)
        best, guesses = published_probabilities(classifier, images).max(dim=1)
        cells = []
        for i, (image, guess, chance) in enumerate(zip(images, guesses.tolist(), best.tolist(), strict=True)):
            predicted = caption_lines(f"{classifier.backbone.categories[guess]} {chance:.0%}", width=size)
            caption = (*caption_lines(example_name(examples, i), width=size), *predicted)
            cells.append(Cell(pixels=photo(image, size), caption=caption, toned=len(predicted), frame=YELLOW))
        note = "as published, before finetuning; below the true name the most probable category"
        title, epoch = "published network", epoch_label(state)
        pixels = grid(cells, columns=columns, title=title, header_note=epoch, notes=[note])
        return {"predictions/imagenet": Picture(pixels=pixels, description=_EXPLANATION_PUBLISHED)}


def draw_predictions(
    images: Tensor,
    chances: Tensor,
    labels: Tensor | None,
    class_names: tuple[str, ...],
    *,
    columns: int = 4,
    header_note: str = "",
    title: str = "predictions",
) -> Picture:
    """Draw images `(N, C, H, W)` with the most probable class of each.

    Args:
        images: in [0, 1].
        chances: the probabilities `(N, classes)`.
        labels: the true classes `(N,)`, or None if they are unknown.
        class_names: in the order of the classes.
        columns: images per row, at most.
        header_note: at the right of the title.
        title: of the picture.
    """
    columns = column_count(len(images), most=columns)
    size = tile_size(columns)
    best, guesses = chances.max(dim=1)
    cells = []
    for i, (image, guess, chance) in enumerate(zip(images, guesses.tolist(), best.tolist(), strict=True)):
        predicted = caption_lines(f"{name_of(guess, class_names)} {chance:.0%}", width=size)
        if labels is None:
            cells.append(Cell(pixels=photo(image, size), caption=predicted))
            continue
        right = guess == int(labels[i])
        predicted = (f"{chance:.0%}",) if right else predicted
        true = caption_lines(name_of(int(labels[i]), class_names), width=size)
        cells.append(
            Cell(
                pixels=photo(image, size),
                caption=(*true, *predicted),
                toned=len(predicted),
                frame=BLUE if right else VERMILION,
                mark="✓" if right else "✗",
            )
        )
    if labels is None:
        note, explanation = "the predicted class of each image", _EXPLANATION_UNLABELLED
    else:
        hits = int((guesses == labels.cpu()).sum())
        note, explanation = f"{hits} of {len(images)} right; below the true name the predicted one", _EXPLANATION
    pixels = grid(cells, columns=columns, title=title, header_note=header_note, notes=[note])
    return Picture(pixels=pixels, description=explanation)
