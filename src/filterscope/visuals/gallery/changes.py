"""What is another with a filter in two networks that are shown side by side, and by how much."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from filterscope.visuals.gallery.comparison_gallery import ComparedGallery
from filterscope.visuals.gallery.layer_page import LayerPage


@dataclass(frozen=True, kw_only=True)
class Change:
    """From what a filter was there to what it is here; None: one of the two is not known.

    `kernel` is the mean difference of the two kernels as they are drawn, 0 to 1; `others` is how many of the `best`
    real images are not the same, where both were looked at with the same images.
    """

    verdict: bool
    kernel: float | None
    activation: tuple[float, float] | None
    z: tuple[float, float] | None
    others: int | None
    best: int

    @property
    def said(self) -> str:
        """All of it in a line."""
        parts = [f"kernel differs by {100 * self.kernel:.2g} %"] if self.kernel is not None else []
        parts += [f"activation {self.activation[0]:.2g} → {self.activation[1]:.2g}"] if self.activation else []
        parts += [f"structure {self.z[0]:.1f} → {self.z[1]:.1f}"] if self.z else []
        parts += [f"{self.others} of {self.best} images new"] if self.others is not None else []
        return " · ".join(parts)

    def by(self, key: str) -> float:
        """Return how much has changed of the activation or the structure (`z`)."""
        before, after = getattr(self, key) or (0.0, 0.0)
        return float(abs(after - before))


def changes(view: LayerPage, there: Mapping[str, Any], other: ComparedGallery, *, same_images: bool) -> list[Change]:
    """Return what has changed of every filter of a layer.

    Args:
        view: the layer here.
        there: the same layer in the other gallery, with as many filters.
        other: that gallery.
        same_images: whether both were looked at with the same images.
    """
    kernels = _differences(view, other.files[f"beside/{there['slug']}-kernels.webp"])
    return [
        Change(
            verdict=before["verdict"] != after["verdict"],
            kernel=kernels[i] if kernels else None,
            activation=_both(before, after, "activation"),
            z=_both(before, after, "z"),
            others=len(set(after["best"]) - set(before["best"])) if same_images and before["best"] else None,
            best=len(after["best"]),
        )
        for i, (before, after) in enumerate(zip(there["filters"], view.facts, strict=True))
    ]


def _both(before: Mapping[str, Any], after: Mapping[str, Any], key: str) -> tuple[float, float] | None:
    known = before.get(key) is not None and after.get(key) is not None
    return (float(before[key]), float(after[key])) if known else None


def _differences(view: LayerPage, content: bytes) -> list[float]:
    """Return the mean difference of each kernel from that in another atlas, none where those have another shape."""
    atlases = (view.kernels.content, content)
    here, there = (np.asarray(Image.open(io.BytesIO(each)).convert("RGB"), float) for each in atlases)
    if here.shape != there.shape:
        return []
    columns, rows = view.kernels.columns, view.kernels.rows
    tiles = np.abs(here - there).reshape(rows, here.shape[0] // rows, columns, -1).mean(axis=(1, 3)) / 255
    return [float(each) for each in tiles.flatten()[: len(view.facts)]]
