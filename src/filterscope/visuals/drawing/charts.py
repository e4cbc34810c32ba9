"""Charts drawn by matplotlib in the colours of the pictures."""

import io
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from filterscope.visuals.drawing.grid import BACKGROUND, FAINT, MARGIN, WIDTH, Colour, Pixels


def dark_figure(rows: int, **options: Any) -> tuple[Figure, list[Any]]:
    """Return a figure as wide as a picture, in its colours, and its axes, one below the other."""
    size = ((WIDTH - 2 * MARGIN) / 100, 5.6)
    figure = Figure(figsize=size, dpi=100, layout="constrained", facecolor=shade(BACKGROUND))
    every = list(figure.subplots(rows, 1, squeeze=False, **options)[:, 0])
    for axes in every:
        axes.set_facecolor(shade(BACKGROUND))
        axes.tick_params(colors=shade(FAINT), labelsize=15)
        axes.xaxis.label.set(color=shade(FAINT), size=16)
        axes.yaxis.label.set(color=shade(FAINT), size=16)
        axes.spines[:].set_color(shade(FAINT))
    return figure, every


def rasterized(figure: Figure) -> Pixels:
    """Return the pixels of a figure."""
    file = io.BytesIO()
    figure.savefig(file, format="png", facecolor=figure.get_facecolor())
    return np.asarray(Image.open(file).convert("RGB"))


def shade(colour: Colour) -> tuple[float, float, float]:
    """Return a colour as matplotlib takes it."""
    red, green, blue = (part / 255 for part in colour)
    return red, green, blue
