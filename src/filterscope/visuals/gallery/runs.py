"""A site that shows the galleries of several runs side by side, filter by filter."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from filterscope.errors import printable
from filterscope.visuals.gallery.layer_page import VERDICTS, LayerPage
from filterscope.visuals.gallery.pages import Info, build_site, page_html, script_file, style_and_script
from filterscope.visuals.gallery.sprites import grid_shape
from filterscope.visuals.output.site import MADE_BY, MANIFEST, Site


@dataclass(frozen=True, kw_only=True)
class DrawnRun:
    """The gallery of a run: its name in the comparison, and what `draw_gallery` returned."""

    name: str
    pages: Sequence[LayerPage]
    info: Info

    def page(self, layer: str) -> LayerPage | None:
        """Return the page of a layer, or None if the network has no such layer."""
        return next((page for page in self.pages if page.name == layer), None)


@dataclass(frozen=True, kw_only=True)
class FilterChange:
    """How a filter differs from the corresponding one of the first run; None where one of the values is unknown.

    Attributes:
        number: of the filter in the other run.
        correlation: of the responses of both to the same images, −1 to 1.
        verdict: whether the verdict differs.
        kernel: the mean absolute difference of the two kernels as drawn, 0 to 1.
        activation: the relative activation before and after.
        z: the structure before and after.
        new_images: how many of the `top_images` most activating images are new, if both runs used the same images.
        top_images: how many images are compared.
    """

    number: int
    correlation: float | None
    verdict: bool
    kernel: float | None
    activation: tuple[float, float] | None
    z: tuple[float, float] | None
    new_images: int | None
    top_images: int

    @property
    def summary(self) -> str:
        """All differences in one line."""
        parts = [f"kernel differs by {100 * self.kernel:.2g} %"] if self.kernel is not None else []
        parts += [f"activation {self.activation[0]:.2g} → {self.activation[1]:.2g}"] if self.activation else []
        parts += [f"structure {self.z[0]:.1f} → {self.z[1]:.1f}"] if self.z else []
        parts += [f"{self.new_images} of {self.top_images} images new"] if self.new_images is not None else []
        return " · ".join(parts)

    def size(self, key: str) -> float:
        """Return the absolute difference of `activation` or `z`, 0 where it is unknown."""
        before, after = getattr(self, key) or (0.0, 0.0)
        return float(abs(after - before))


def build_runs_site(runs: Sequence[DrawnRun]) -> Site:
    """Return the site: an overview of the runs, a page for every layer of the first run, and the gallery of each run.

    Args:
        runs: at least two; the others are compared with the first.
    """
    content: dict[str, bytes] = {}
    runs = [replace(run, name=printable(run.name)) for run in runs]
    for r, run in enumerate(runs):
        content |= {f"runs/{r}/{path}": file for path, file in build_site(run.pages, run.info).files.items()}
    content |= style_and_script()
    layers = []
    for page in runs[0].pages:
        others = [run.page(page.name) for run in runs]
        changes = [
            filter_changes(page, other, same_images=_same_images(runs[0], run), by_number=_same_start(runs[0], run))
            if other is not None and run is not runs[0]
            else None
            for run, other in zip(runs, others, strict=True)
        ]
        rows = [_largest_changes([each[i] for each in changes if each]) for i in range(len(page.facts))]
        layers.append({"name": page.name, "slug": page.slug, "pages": others, "changes": changes, "rows": rows})
    options = [run.info["run"] for run in runs]
    names = list(dict.fromkeys(name for each in options for name in each))
    metrics = list(dict.fromkeys(name for run in runs for name in run.info["best"]))
    values = {name: tuple(str(each.get(name)) for each in options) for name in names}
    # An option may refer to another one, as `optimizer.lr` to `finetune.lr`: then the first stands for both.
    distinct = {(name.rpartition(".")[2], values[name]): name for name in reversed(names)}
    differ = [name for name in names if len(set(values[name])) > 1 and name in distinct.values()]
    context: dict[str, Any] = {
        "runs": runs,
        "labels": _labels(runs, differ),
        "layers": layers,
        "metrics": metrics,
        "options": differ,
        "info": {"title": f"{len(runs)} runs side by side"},
    }
    content["index.html"] = page_html("runs.html.j2", **context)
    for layer in layers:
        content[f"layers/{layer['slug']}.html"] = page_html("runs_layer.html.j2", layer=layer, **context)
        content[f"data/layers/{layer['slug']}.js"] = script_file("filterscopeRuns", _layer_data(runs, layer))
    content[MANIFEST] = json.dumps(_manifest(runs, layers), ensure_ascii=False).encode()
    text = f"A gallery of {len(runs)} runs side by side: open `gallery/index.html` in a browser."
    return Site(files=content, description=text)


def _labels(runs: Sequence[DrawnRun], differ: Sequence[str]) -> list[str]:
    """Return a short label for each run: the options in which it differs, or its name where these are many or equal."""
    labels = [
        ", ".join(f"{name.rpartition('.')[2]} {run.info['run'].get(name, '–')}" for name in differ) for run in runs
    ]
    return labels if len(set(labels)) == len(runs) and max(map(len, labels)) <= 40 else [run.name for run in runs]


def filter_changes(
    before: LayerPage, after: LayerPage, *, same_images: bool, by_number: bool = False
) -> list[FilterChange | None]:
    """Return how each filter of a layer differs from the corresponding one of another run, None if there is none.

    Filters correspond by number, or else by the highest correlation of their responses to the same images; without
    either, none correspond.

    Args:
        before: the layer in the first run.
        after: the same layer in the other run.
        same_images: whether both used the same real images.
        by_number: whether both networks started from the same weights.
    """
    count, total = len(before.facts), len(after.facts)
    related = _correlations(before.responses, after.responses) if same_images else None
    partners: list[int | None] = [None] * count
    if by_number and count == total:
        partners = list(range(count))
    elif related is not None:
        partners = [int(i) for i in related.argmax(1)]
    drawn = [_tiles(page.atlases["kernels"], len(page.facts)) for page in (before, after)]
    comparable = drawn[0].shape[1:] == drawn[1].shape[1:]
    changes: list[FilterChange | None] = []
    for i, j in enumerate(partners):
        if j is None:
            changes.append(None)
            continue
        old, new = before.facts[i], after.facts[j]
        changes.append(
            FilterChange(
                number=j,
                correlation=None if related is None else round(float(related[i, j]), 2),
                verdict=old["verdict"] != new["verdict"],
                kernel=float(np.abs(drawn[1][j] - drawn[0][i]).mean() / 255) if comparable else None,
                activation=_pair(old, new, "activation"),
                z=_pair(old, new, "z"),
                new_images=len(set(new["best"]) - set(old["best"])) if same_images and old["best"] else None,
                top_images=len(new["best"]),
            )
        )
    return changes


def _largest_changes(changes: Sequence[FilterChange | None]) -> dict[str, float]:
    """Return by which numbers the page sorts a filter: its largest changes in any run."""
    known = [each for each in changes if each is not None]
    verdicts = sum(each.verdict for each in known)
    return {
        "changed": int(verdicts > 0),
        "verdicts": verdicts,
        "kernel": round(max((each.kernel or 0.0 for each in known), default=0.0), 4),
        "activation": round(max((each.size("activation") for each in known), default=0.0), 3),
        "z": round(max((each.size("z") for each in known), default=0.0), 3),
        "images": max((each.new_images or 0 for each in known), default=0),
    }


def _correlations(before: Tensor | None, after: Tensor | None) -> Tensor | None:
    """Return the correlations of responses `(images, filters)` as `(filters before, filters after)`."""
    if before is None or after is None or len(before) != len(after):
        return None
    rows = [(each - each.mean(0)).T for each in (before, after)]
    unit = [F.normalize(row, dim=1, eps=torch.finfo(row.dtype).tiny) for row in rows]
    related: Tensor = unit[0] @ unit[1].T
    return related


def _same_images(first: DrawnRun, other: DrawnRun) -> bool:
    return bool(first.info["images"]) and first.info["images_hash"] == other.info["images_hash"]


def _same_start(first: DrawnRun, other: DrawnRun) -> bool:
    weights = [str(run.info["run"].get("model.weights")) for run in (first, other)]
    return first.info["network"] == other.info["network"] and weights[0] == weights[1] != "None"


def _pair(before: Mapping[str, Any], after: Mapping[str, Any], key: str) -> tuple[float, float] | None:
    known = before.get(key) is not None and after.get(key) is not None
    return (float(before[key]), float(after[key])) if known else None


def _tiles(atlas: bytes, count: int) -> np.ndarray[Any, np.dtype[Any]]:
    """Return the tiles of an atlas, `(count, height, width, 3)`."""
    pixels = np.asarray(Image.open(io.BytesIO(atlas)).convert("RGB"), float)
    columns, rows = grid_shape(count)
    tiles = pixels.reshape(rows, pixels.shape[0] // rows, columns, -1, 3).swapaxes(1, 2)
    return tiles.reshape(rows * columns, *tiles.shape[2:])[:count]


def _layer_data(runs: Sequence[DrawnRun], layer: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the script of a layer's page needs: the partners of every filter, and the records of all epochs."""
    pages: Sequence[LayerPage | None] = layer["pages"]
    count = len(layer["changes"][0] or pages[0].facts)  # type: ignore[union-attr]
    return {
        "slug": layer["slug"],
        "words": VERDICTS,
        "runs": [
            {
                "name": run.name,
                "count": len(page.facts) if page else 0,
                "metrics": run.info["metrics"],
                "partners": list(range(count))
                if changes is None and page is pages[0]
                else [each.number if each else None for each in changes or [None] * count],
                "records": page.epoch_facts if page and page.epochs else None,
            }
            for run, page, changes in zip(runs, pages, layer["changes"], strict=True)
        ],
    }


def _manifest(runs: Sequence[DrawnRun], layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "made_by": MADE_BY,
        "runs": [{"name": run.name, "gallery": f"runs/{r}/{MANIFEST}"} for r, run in enumerate(runs)],
        "layers": [
            {
                "name": layer["name"],
                "partners": [
                    None if changes is None else [(c.number, c.correlation) if c else None for c in changes]
                    for changes in layer["changes"]
                ],
            }
            for layer in layers
        ],
    }
