"""Draw figures for a paper as PNG, PDF and SVG: kernels of a layer, and the shares of the verdicts."""

import io
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor
from torchvision.utils import make_grid

from filterscope.analysis.filters import kernels, shared_patterns
from filterscope.analysis.health.verdict import Verdict
from filterscope.models.classifier import Classifier
from filterscope.models.layers import channels_of, convolutions
from filterscope.registry import register
from filterscope.visuals.drawing.tiles import SIGNED
from filterscope.visuals.output.outputs import Encoded
from filterscope.visuals.visual import (
    ChannelChoice,
    Every,
    Examples,
    LayerChoice,
    Visual,
    VisualState,
)

# Embedding fonts in a PDF logs dozens of lines at level INFO.
logging.getLogger("fontTools").setLevel(logging.WARNING)
# Text stays text in PDF and SVG; a fixed hash salt makes equal figures equal files.
_STYLE: Any = {"font.size": 8, "pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "filterscope"}


@register("visual", "figures")
@dataclass(frozen=True, kw_only=True)
class Figures(Visual):
    """Draw figures for a paper: the kernels of each layer, `figures/<layer>`, and the verdicts, `figures/health`.

    Attributes:
        layers: names of convolutions; None: the first one.
        channels: the first so many filters, a list of indices, or None for all.
        formats: any of `png`, `pdf` and `svg`.
        width: the largest width in inches; 3.5 is a column of most journals, 7.2 a page.
        dpi: the resolution of raster parts.
        every: draw every so many epochs, 0: before training only.
    """

    priority: ClassVar[int] = 1
    needs_convolutions: ClassVar[bool] = True

    layers: LayerChoice = None
    channels: ChannelChoice = 64
    formats: Annotated[Sequence[Literal["png", "pdf", "svg"]], Field(min_length=1)] = ("png", "pdf", "svg")
    width: PositiveFloat = 3.5
    dpi: PositiveInt = 300
    every: Every = 0

    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> dict[str, Encoded]:
        """Return a figure of every layer, and one of the verdicts if there are any."""
        shown = {}
        for layer in self.layers if self.layers is not None else convolutions(classifier.layers)[:1]:
            channels = channels_of(classifier.layers, layer, self.channels)
            weights = kernels(classifier, layer)[channels]
            shown[f"figures/{layer}"] = self._encode(partial(draw_kernels, weights=weights, channels=channels))
        health = state.store.get("health", {})
        verdicts = {layer: about["verdicts"] for layer, about in health.items() if "verdicts" in about}
        if verdicts:
            shown["figures/health"] = self._encode(partial(draw_verdicts, verdicts=verdicts))
        return shown

    def _encode(self, draw: Callable[[Figure], str]) -> Encoded:
        """Return a figure in all formats; `draw` draws into it and returns its caption."""
        with rc_context(_STYLE):
            figure = Figure(figsize=(self.width, self.width), dpi=self.dpi, layout="constrained")
            caption = draw(figure)
            contents: dict[str, bytes] = {}
            for suffix in self.formats:
                file = io.BytesIO()
                # Without a date, equal figures are equal files.
                metadata = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(suffix)
                figure.savefig(file, format=suffix, metadata=metadata, bbox_inches="tight", pad_inches=0.02)
                contents[suffix] = file.getvalue()
        return Encoded(contents=contents, description=caption)


def draw_kernels(figure: Figure, weights: Tensor, channels: Sequence[int]) -> str:
    """Draw kernels `(n, inputs, kh, kw)` in a square grid with numbered rows and columns, and return the caption."""
    columns = math.ceil(math.sqrt(len(channels)))
    rows = -(-len(channels) // columns)
    figure.set_size_inches(figure.get_figwidth(), figure.get_figwidth() * rows / columns + 0.5)
    colour = weights.shape[1] == 3
    values = weights if colour else (weights if weights.shape[1] == 1 else shared_patterns(weights)[0][:, None])
    scaled = values / values.abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-12)
    height, width = scaled.shape[2:]
    gap = max(1, width // 8)
    drawn = make_grid(scaled, nrow=columns, padding=gap, pad_value=math.nan)[:, gap:-gap, gap:-gap]
    mosaic = drawn.permute(1, 2, 0).numpy()
    axes = figure.subplots()
    if colour:
        axes.imshow(np.nan_to_num(0.5 + 0.5 * mosaic, nan=1.0), interpolation="none")
    else:
        axes.imshow(mosaic[..., 0], cmap=SIGNED, vmin=-1, vmax=1, interpolation="none")
        scale = ScalarMappable(norm=Normalize(-1, 1), cmap=SIGNED)
        figure.colorbar(scale, ax=axes, shrink=0.5, ticks=[-1, 0, 1], label="weight / largest weight of the kernel")
    axes.set_xticks([c * (width + gap) + (width - 1) / 2 for c in range(columns)], [f"+{c}" for c in range(columns)])
    firsts = [channels[row * columns] for row in range(rows)]
    axes.set_yticks([r * (height + gap) + (height - 1) / 2 for r in range(rows)], [str(first) for first in firsts])
    axes.tick_params(length=0)
    axes.set_ylabel("filter")
    axes.spines[:].set_visible(False)
    shown = ", in colour, grey is zero" if colour else ""
    shown = shown or (", the spatial pattern that the input channels share most" if weights.shape[1] > 1 else "")
    return f"{len(channels)} kernels of {height}×{width}{shown}; each is scaled by its largest absolute weight."


def draw_verdicts(figure: Figure, verdicts: Mapping[str, Sequence[str]]) -> str:
    """Draw the shares of the verdicts in each layer as stacked bars, and return the caption."""
    figure.set_size_inches(figure.get_figwidth(), 0.6 + 0.22 * len(verdicts))
    axes = figure.subplots()
    layers = list(verdicts)
    left = np.zeros(len(layers))
    for verdict in Verdict:
        shares = np.array([verdicts[layer].count(verdict) / len(verdicts[layer]) for layer in layers])
        if shares.any():
            # The hatching distinguishes the verdicts in print without colour.
            bar: dict[str, Any] = {"color": [part / 255 for part in verdict.colour], "hatch": verdict.hatch}
            axes.barh(layers, shares, left=left, edgecolor="white", label=verdict.value, **bar)
            left += shares
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the layer's filters")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=5, frameon=False, handlelength=1.2, columnspacing=1.0)
    return f"Verdicts on the filters of {len(layers)} layers ({sum(map(len, verdicts.values()))} filters)."
