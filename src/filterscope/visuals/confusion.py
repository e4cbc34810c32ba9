"""Draw a confusion matrix and tabulate the accuracy of each class."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from filterscope.visuals.drawing.grid import (
    BACKGROUND,
    BLUE,
    FAINT,
    INK,
    MARGIN,
    VERMILION,
    WIDTH,
    Cell,
    Colour,
    Pixels,
    grid,
)
from filterscope.visuals.drawing.text import draw_text, fitting, text_width
from filterscope.visuals.output.outputs import Picture, Table
from filterscope.visuals.visual import name_of

_MAX_NAMED = 20  # classes; more have no room for their names at the axes
_LISTED = 5  # mistakes, where the names of the classes do not fit
_EMPTY: Colour = (38, 41, 48)
_ROOM = WIDTH - 2 * MARGIN
_EXPLANATION = (
    "Each row is a true class, each column a predicted class. The diagonal (**blue**) counts right predictions, all "
    "other cells (**orange**) mistakes; brighter cells hold a larger share of the images of their row."
)


def confusion_picture(counts: Tensor, class_names: Sequence[str]) -> Picture:
    """Draw a confusion matrix, with names and counts for up to 20 classes, with the commonest mistakes for more.

    Args:
        counts: `(classes, classes)`, rows are true classes, columns predicted ones.
        class_names: in the order of the classes; missing ones are numbered.
    """
    counts = counts.detach().cpu().long()
    total, right = int(counts.sum()), int(counts.diagonal().sum())
    names = [name_of(i, class_names) for i in range(len(counts))]
    note = f"{right} of {total} right ({right / max(total, 1):.1%}). Rows: true, columns: predicted, brightness: share"
    lines: tuple[str, ...] = ()
    if len(counts) > _MAX_NAMED:
        mistakes = commonest_mistakes(counts, _LISTED)
        lines = tuple(f"{names[true]} → {names[said]}: {count}×" for count, true, said in mistakes)
    cell = Cell(
        pixels=_named_matrix(counts, names) if len(counts) <= _MAX_NAMED else _matrix(counts, _ROOM), caption=lines
    )
    drawn = grid([cell], columns=1, title="confusion", notes=[note])
    listed = "".join(f"\n- {line}" for line in lines)
    return Picture(pixels=drawn, description=_EXPLANATION + (f" Commonest mistakes:\n{listed}" if lines else ""))


def accuracy_table(counts: Tensor, class_names: Sequence[str]) -> Table:
    """Return for each class its number of images, its accuracy, and the class it is most often mistaken for.

    Args:
        counts: `(classes, classes)`, rows are true classes, columns predicted ones.
        class_names: in the order of the classes; missing ones are numbered.
    """
    counts = counts.detach().cpu().long()
    wrong = counts - counts.diagonal().diag()
    rows = []
    for i, row in enumerate(counts):
        images, right = int(row.sum()), int(row[i])
        other = int(wrong[i].argmax())
        mistaken = name_of(other, class_names) if int(wrong[i, other]) else ""
        accuracy = right / images if images else float("nan")
        called = int(counts[:, i].sum())
        precision = right / called if called else float("nan")
        score = 2 * right / (images + called) if images + called else float("nan")
        row_end = (mistaken, int(wrong[i, other]), precision, score)
        rows.append((name_of(i, class_names), images, right, accuracy, *row_end))
    return Table(
        columns=("class", "images", "right", "accuracy", "most often mistaken for", "times", "precision", "F1"),
        rows=tuple(rows),
        description="How many images of each class are recognised (accuracy, the same as recall), the class it is most "
        "often mistaken for, the share of right predictions of it (precision), and F1.",
    )


def commonest_mistakes(counts: Tensor, count: int) -> list[tuple[int, int, int]]:
    """Return up to `count` mistakes as (number of images, true class, predicted class), the commonest first."""
    wrong = counts - counts.diagonal().diag()
    order = torch.argsort(wrong.flatten(), descending=True, stable=True)[:count].tolist()
    found = [(int(wrong.flatten()[i]), i // len(counts), i % len(counts)) for i in order]
    return [mistake for mistake in found if mistake[0] > 0]


def _matrix(counts: Tensor, room: int) -> Pixels:
    """Return the matrix as a tile of at most `room` pixels; a root makes single mistakes visible."""
    share = (counts / counts.sum(dim=1, keepdim=True).clamp_min(1)).numpy()[..., None]
    share = share ** (0.5 if len(counts) <= _MAX_NAMED else 0.3)
    full = np.where(np.eye(len(counts), dtype=bool)[..., None], BLUE, VERMILION)
    cells = (np.array(_EMPTY) * (1 - share) + full * share).round().astype(np.uint8)
    step = max(room // len(counts), 1)
    enlarged: Pixels = cells.repeat(step, axis=0).repeat(step, axis=1)
    if step >= 6:
        line = 3 if step >= 30 else 1
        edges = [np.arange(line) + i * step - line // 2 for i in range(1, len(counts))]
        for edge in edges:
            enlarged[edge], enlarged[:, edge] = BACKGROUND, BACKGROUND
    return enlarged


def _named_matrix(counts: Tensor, names: Sequence[str]) -> Pixels:
    size = 32 if len(names) <= 12 else 26
    left = min(round(max(text_width(name, size) for name in names)) + 12, 300)
    tile = _matrix(counts, _ROOM - left)
    step = tile.shape[0] // len(names)
    image = Image.new("RGB", (_ROOM, tile.shape[0] + left), BACKGROUND)
    image.paste(Image.fromarray(tile), (left, 0))
    pen = ImageDraw.Draw(image)
    for i, name in enumerate(names):
        text, fitted = fitting(name, width=left - 12, size=min(size, step))
        middle = i * step + step / 2
        draw_text(pen, (left - 12, middle), text, size=fitted, colour=INK, anchor="rm")
        upright = Image.new("RGB", (left, step), BACKGROUND)
        draw_text(ImageDraw.Draw(upright), (left - 12, step / 2), text, size=fitted, colour=FAINT, anchor="rm")
        image.paste(upright.rotate(90, expand=True), (left + i * step, tile.shape[0]))
        for j, count in enumerate(counts[i].tolist()):
            if count:
                share = count / max(int(counts[i].sum()), 1)
                number, fits = fitting(str(count), width=step - 6, size=min(34, step - 4))
                colour = BACKGROUND if share > 0.15 else INK
                at = (left + j * step + step / 2, middle)
                draw_text(pen, at, number, size=fits, colour=colour, anchor="mm")
    return np.asarray(image)
