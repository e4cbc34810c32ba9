"""The images themselves, with the names of their classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from filterscope.analysis.responses import grey
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.registry import register
from filterscope.visuals.drawing.grid import Cell, grid, shape, side
from filterscope.visuals.drawing.text import named
from filterscope.visuals.drawing.tiles import photo
from filterscope.visuals.output.outputs import Picture
from filterscope.visuals.visual import Every, Examples, Visual, VisualState, epoch_label, example_name


@register("visual", "batch")
@dataclass(frozen=True, kw_only=True)
class Batch(Visual):
    """Draw examples with the names of their classes: `examples/batch`.

    Attributes:
        images: how many examples.
        columns: how many stand side by side.
        grey: draw them without colour.
        every: draw every so many epochs, 0: before training only.
    """

    images: int = 20
    columns: int = 5
    grey: bool = False
    every: Every = 0
    needs_images: ClassVar[bool] = True

    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> dict[str, Picture]:
        """Return one picture of the first examples."""
        del classifier
        shown = range(min(self.images, len(examples)))
        captions = [example_name(examples, i) for i in shown]
        images = examples.images[: self.images]
        if self.grey:
            images = torch.stack([grey(image) for image in images]) if len(images) else images
        of_whom = "its class" if len(captions) == 1 else "their classes"
        note = f"{len(captions)} image{'s' * (len(captions) != 1)} of the data"
        note += f" with the name{'s' * (len(captions) != 1)} of {of_whom}" if examples.labels is not None else ""
        how = "Images of the data as the network gets them (before it normalises them), with their classes."
        return {
            "examples/batch": draw_images(
                images,
                captions,
                title="examples",
                note=note,
                columns=self.columns,
                aside=epoch_label(state),
                description=how,
            )
        }


@register("visual", "classes")
@dataclass(frozen=True, kw_only=True)
class Classes(Visual):
    """Draw one example of every class with its name: `examples/classes`.

    Attributes:
        classes: how many classes at most, None: all.
        columns: how many stand side by side.
        every: draw every so many epochs, 0: before training only.
    """

    classes: int | None = None
    columns: int = 5
    every: Every = 0
    needs_images: ClassVar[bool] = True

    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> dict[str, Picture]:
        """Return one picture with the first example of each class that is among the examples."""
        if examples.labels is None:
            raise UserError("examples/classes needs images whose classes are known")
        first: dict[int, int] = {}
        for i, label in enumerate(examples.labels.tolist()):
            first.setdefault(int(label), i)
        total = max(len(examples.class_names), classifier.num_classes)
        shown = [first[label] for label in sorted(first)][: self.classes]
        note = f"one image of each of {len(shown)} classes"
        if len(shown) < total:
            note = f"one image of each of {len(shown)} of {total} classes"
        return {
            "examples/classes": draw_images(
                examples.images[shown],
                [example_name(examples, i) for i in shown],
                title="classes",
                note=note,
                columns=self.columns,
                aside=epoch_label(state),
                description=f"{note[0].upper()}{note[1:]}, with its name.",
            )
        }


def draw_images(
    images: Tensor,
    captions: Sequence[str],
    *,
    title: str,
    note: str = "",
    columns: int = 5,
    aside: str = "",
    description: str = "",
) -> Picture:
    """Draw images `(N, C, H, W)` in [0, 1] with a caption each."""
    if not len(images):
        raise UserError(f"{title}: there are no images to draw; give images=[…] or a data set")
    columns = shape(len(images), most=columns)
    size = side(columns)
    cells = [
        Cell(pixels=photo(image, size), caption=named(caption, width=size))
        for image, caption in zip(images, captions, strict=True)
    ]
    drawn = grid(cells, columns=columns, title=title, aside=aside, notes=[note])
    return Picture(drawn=drawn, description=description)
