"""From what was found out to pages: templates filled in, data as scripts, so that it all opens from the disk."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from filterscope.visuals.drawing.pixels import Pixels
from filterscope.visuals.filter_selection import COLOURS
from filterscope.visuals.gallery.atlas import Atlas, atlas, within
from filterscope.visuals.gallery.changes import Change, changes
from filterscope.visuals.gallery.comparison_gallery import ComparedGallery
from filterscope.visuals.gallery.facts import MEASURES, counted
from filterscope.visuals.gallery.layer_page import LayerPage
from filterscope.visuals.output.site import MADE_BY, MANIFEST, Site

WORDS = {
    "useful": "nothing speaks against it",
    "duplicate": "does what another filter of the layer does",
    "idle": "puts out a fifth of what the layer does, or less",
    "noise": "its weights stand as they would by chance",
    "dead": "never positive on any image",
}
IMAGE = 20_000  # bytes of an example
SAMPLE = 3_000  # bytes of a picture in the overview
_STATIC = ("gallery.css", "gallery.js")


@dataclass(frozen=True, kw_only=True)
class About:
    """What holds for the whole site."""

    title: str
    network: str
    classes: Sequence[str]
    pool: int
    cropped: bool
    labelled: bool
    images: Sequence[Pixels]
    image_names: Sequence[str]
    pool_state: str
    recipes: Sequence[str]
    faces: int
    bound: float


def site_of(views: Sequence[LayerPage], about: About, other: ComparedGallery | None = None) -> Site:
    """Return the whole site: overview, a page for every layer and for its filters, pictures, data."""
    samples = [tile for view in views for tile in view.samples]
    posters = atlas(samples, most=SAMPLE * len(samples))
    content: dict[str, bytes] = dict(other.files) if other else {}
    for view in views:
        content |= view.files
        content[f"data/{view.slug}.js"] = _script("filterscope", _data(view, about))
    content |= {f"images/{i}.webp": within(pixels, IMAGE) for i, pixels in enumerate(about.images)}
    content["atlas/overview.webp"] = posters.content
    place = files("filterscope.visuals.gallery") / "templates"
    content |= {name: (place / name).read_bytes() for name in _STATIC}
    content[MANIFEST] = json.dumps(_manifest(views, about), ensure_ascii=False).encode()
    content |= _pages(views, about, other, posters)
    size = sum(map(len, content.values())) / 1e6
    content["index.html"] = _render("index.html.j2", views=views, about=about, other=other, posters=posters, size=size)
    total = sum(len(view.facts) for view in views)
    text = (
        f"A gallery of {total} filters in {len(views)} layers, {size:.1f} MB: open `gallery/index.html` in a browser."
    )
    return Site(files=content, description=text)


def _pages(views: Sequence[LayerPage], about: About, other: ComparedGallery | None, posters: Atlas) -> dict[str, bytes]:
    pages: dict[str, bytes] = {
        "index.html": _render("index.html.j2", views=views, about=about, other=other, posters=posters, size=0.0)
    }
    for i, view in enumerate(views):
        around = {"previous": views[i - 1] if i else None, "following": views[i + 1] if i + 1 < len(views) else None}
        there = _there(view, other)
        both = {"view": view, "about": about, "other": other, "there": there}
        pages[f"layers/{view.slug}.html"] = _render("layer.html.j2", **both, **around, served=_served(view))
        if other and there:
            changed = changes(view, there, other, same_images=other.images == about.pool_state)
            pages[f"compare/{view.slug}.html"] = _render("compare.html.j2", **both, **around, changed=changed)
            pages[f"beside/{view.slug}.js"] = _script("filterscopeBeside", _beside(there, changed))
        pages[f"filters/{view.slug}.html"] = _render("filter.html.j2", **both, **around, measures=MEASURES)
    return pages


def _there(view: LayerPage, other: ComparedGallery | None) -> Any:
    """Return the same layer of the other gallery, where it has one of as many filters."""
    layer = other.layers.get(view.name) if other else None
    return layer if layer and len(layer["filters"]) == len(view.facts) else None


def _served(view: LayerPage) -> list[int]:
    return sorted({label for each in view.facts for label, _ in each["classes"][:3]})


def _data(view: LayerPage, about: About) -> dict[str, Any]:
    return {
        "layer": view.name,
        "slug": view.slug,
        "layout": asdict(view.layout),
        "recipes": [recipe for recipe in about.recipes for _ in range(about.faces)],
        "epochs": list(view.epochs),
        "classes": list(about.classes),
        "images": list(about.image_names),
        "filters": view.facts,
    }


def _beside(there: Any, changed: Sequence[Change]) -> list[tuple[str, str, str]]:
    """Return of every filter its verdict and the reason there, and what has changed."""
    return [
        (each["verdict"], each["reason"], change.said) for each, change in zip(there["filters"], changed, strict=True)
    ]


def _script(name: str, data: Any) -> bytes:
    # A script and no JSON file: a page that lies on the disk may not fetch one.
    return f"window.{name} = {json.dumps(data, ensure_ascii=False, separators=(',', ':'))};\n".encode()


def _manifest(views: Sequence[LayerPage], about: About) -> dict[str, Any]:
    return {
        "made_by": MADE_BY,
        "title": about.title,
        "network": about.network,
        "images": about.pool_state,
        "layers": [
            {
                "name": view.name,
                "slug": view.slug,
                "kernels": view.kernels.grid,
                "pictures": view.pictures.grid,
                "crops": view.crops.grid if view.crops else None,
                "filters": [
                    {key: each.get(key) for key in ("verdict", "reason", "activation", "z", "best")}
                    for each in view.facts
                ],
            }
            for view in views
        ],
    }


def _render(template: str, **context: Any) -> bytes:
    return _environment().get_template(template).render(**context).encode()


@cache
def _environment() -> Environment:
    found = Environment(
        loader=PackageLoader("filterscope.visuals.gallery"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    found.globals |= {"verdicts": list(COLOURS), "words": WORDS, "counted": lambda said: counted(said, list(COLOURS))}
    found.filters["at"] = _at
    return found


def _at(grid: Any, i: int) -> str:
    """Return where in an atlas tile `i` lies, as CSS; independent of the size at which the file is shown."""
    columns, rows = (grid["columns"], grid["rows"]) if isinstance(grid, dict) else (grid.columns, grid.rows)
    x = 100 * (i % columns) / max(columns - 1, 1)
    y = 100 * (i // columns) / max(rows - 1, 1)
    return f"background-position:{x:.4f}% {y:.4f}%"
