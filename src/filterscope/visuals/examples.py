"""Draw the images themselves with the names of their classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pydantic import PositiveInt
from torch import Tensor

from filterscope.data.images import to_grey
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.registry import register
from filterscope.visuals.drawing.grid import Cell, column_count, grid, tile_size
from filterscope.visuals.drawing.text import caption_lines
from filterscope.visuals.drawing.tiles import photo
from filterscope.visuals.output.outputs import Picture
from filterscope.visuals.visual import Every, Examples, Visual, VisualState, epoch_label, example_name


@register("visual", "batch")
@dataclass(frozen=True, kw_only=True)
class Batch(Visual):
    """Draw examples with the names of their classes: `examples/batch`.

    Attributes:
        images: the number of examples.
        columns: images per row, at most.
        grey: draw them without colour.
    """

    images: PositiveInt = 20
    columns: PositiveInt = 5
    grey: bool = False
    every: Every = 0
    needs_images: ClassVar[bool] = True

    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> dict[str, Picture]:
        """Return one picture of the first examples."""
        images = examples.images[: self.images]
        count = len(images)
        if self.grey and images.shape[1] == 3:
            images = to_grey(images.cpu())
        note = f"{count} image{'s' * (count != 1)} of the data"
        if examples.labels is not None:
            note += " with the name of its class" if count == 1 else " with the names of their classes"
        picture = draw_images(
            images,
            [example_name(examples, i) for i in range(count)],
            title="examples",
            note=note,
            columns=self.columns,
            header_note=epoch_label(state),
            description="Images of the data as the network gets them, before normalisation, with their classes.",
        )
        return {"examples/batch": picture}


@register("visual", "classes")
@dataclass(frozen=True, kw_only=True)
class Classes(Visual):
    """Draw one example of every class with its name: `examples/classes`.

    Attributes:
        classes: the number of classes at most; None: all.
        columns: images per row, at most.
    """

    classes: PositiveInt | None = None
    columns: PositiveInt = 5
    every: Every = 0
    needs_images: ClassVar[bool] = True

    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> dict[str, Picture]:
        """Return one picture with the first example of each class that occurs among the examples."""
        if examples.labels is None:
            raise UserError("examples/classes needs images whose classes are known")
        first: dict[int, int] = {}
        for i, label in enumerate(examples.labels.tolist()):
            first.setdefault(int(label), i)
        total = max(len(examples.class_names), classifier.num_classes)
        chosen = [first[label] for label in sorted(first)][: self.classes]
        count = f"{len(chosen)} of {total}" if len(chosen) < total else f"{total}"
        picture = draw_images(
            examples.images[chosen],
            [example_name(examples, i) for i in chosen],
            title="classes",
            note=f"one image of each of {count} classes",
            columns=self.columns,
            header_note=epoch_label(state),
            description=f"One image of each of {count} classes, with its name.",
        )
        return {"examples/classes": picture}


def draw_images(
    images: Tensor,
    captions: Sequence[str],
    *,
    title: str,
    note: str,
    columns: int,
    header_note: str = "",
    description: str,
) -> Picture:
    """Draw images `(N, C, H, W)` in [0, 1] with a caption each.

    Raises:
        UserError: there are no images.
    """
    if not len(images):
        raise UserError(f"{title}: there are no images to draw; give images=[…] or a data set")
    columns = column_count(len(images), most=columns)
    size = tile_size(columns)
    cells = [
        Cell(pixels=photo(image, size), caption=caption_lines(caption, width=size))
        for image, caption in zip(images, captions, strict=True)
    ]
    pixels = grid(cells, columns=columns, title=title, header_note=header_note, notes=[note])
    return Picture(pixels=pixels, description=description)
