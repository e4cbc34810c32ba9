"""The site of the gallery: templates filled in, and data as scripts so that it opens from the disk."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from filterscope.analysis.health.measures import all_measures
from filterscope.analysis.health.verdict import Verdict
from filterscope.visuals.gallery.compare import ComparedGallery, filter_changes
from filterscope.visuals.gallery.layer_page import LayerPage
from filterscope.visuals.gallery.sprites import draw_atlas, encode_webp, grid_shape
from filterscope.visuals.output.site import MADE_BY, MANIFEST, Site

Info = Mapping[str, Any]
"""What the pages of a site have in common; `Gallery` makes it, and the templates read it."""
MAX_IMAGE_BYTES = 20_000  # of a response image
MAX_OVERVIEW_BYTES = 3_000  # of a filter's picture in the overview


def build_site(pages: Sequence[LayerPage], info: Info, compared: ComparedGallery | None = None) -> Site:
    """Return the site: an overview, pages for every layer and its filters, pictures and data.

    Args:
        pages: the contents of the layers' pages, in the order of the network.
        info: what the pages have in common, as `Gallery` returns it.
        compared: another gallery to show next to this one.
    """
    overview = [tile for page in pages for tile in page.overview.values()]
    content: dict[str, bytes] = dict(compared.files) if compared else {}
    content["atlas/overview.webp"] = encode_webp(draw_atlas(overview), MAX_OVERVIEW_BYTES * len(overview))
    content |= {
        f"images/{i}.webp": encode_webp(each, MAX_IMAGE_BYTES) for i, each in enumerate(info["response_images"])
    }
    templates = files("filterscope.visuals.gallery") / "templates"
    content |= {name: (templates / name).read_bytes() for name in ("gallery.css", "gallery.js")}
    content["data/epochs.js"] = _script("filterscopeEpochs", _epochs(pages, info))
    content["data/search.js"] = _script("filterscopeSearch", _search_index(pages, info))
    content[MANIFEST] = json.dumps(_manifest(pages, info), ensure_ascii=False).encode()
    for i, page in enumerate(pages):
        neighbours = {
            "previous": pages[i - 1] if i else None,
            "following": pages[i + 1] if i + 1 < len(pages) else None,
        }
        content |= page.files | _layer_files(page, info, compared, neighbours)
    context = {"pages": pages, "info": info, "compared": compared, "overview_tiles": len(overview)}
    context["epochs"] = len({epoch for page in pages for epoch in page.epochs})
    # The overview states the size of the site, itself included; the number's digits do not change its length much.
    size = (sum(map(len, content.values())) + len(_render("index.html.j2", **context, megabytes=0.0))) / 1e6
    content["index.html"] = _render("index.html.j2", **context, megabytes=size)
    filters = sum(len(page.facts) for page in pages)
    text = (
        f"A gallery of {filters} filters in {len(pages)} layers, {size:.1f} MB: open `gallery/index.html` in a browser."
    )
    return Site(files=content, description=text)


def _layer_files(
    page: LayerPage,
    info: Info,
    compared: ComparedGallery | None,
    neighbours: Mapping[str, LayerPage | None],
) -> dict[str, bytes]:
    """Return the pages and the data of a layer by their path below the site."""
    other = compared.matching(page.name, len(page.facts)) if compared else None
    context = {"page": page, "info": info, "compared": compared, "other": other, **neighbours}
    data = {
        "layer": page.name,
        "slug": page.slug,
        "layout": asdict(page.layout),
        "recipes": list(info["recipes"]),
        "epochs": list(page.epochs),
        "classes": list(info["classes"]),
        "images": list(info["response_names"]),
        "filters": page.facts,
    }
    found = {
        f"layers/{page.slug}.html": _render("layer.html.j2", **context),
        f"filters/{page.slug}.html": _render("filter.html.j2", **context),
        f"data/{page.slug}.js": _script("filterscope", data),
    }
    if compared and other:
        kernels = compared.files[f"compared/{other['slug']}-kernels.webp"], page.atlases["kernels"]
        same = compared.images == info["images_hash"]
        changes = filter_changes(other["filters"], page.facts, kernels, same_images=same)
        found[f"compare/{page.slug}.html"] = _render("compare.html.j2", **context, changes=changes)
        rows = [
            (each["verdict"], each["reason"], change.summary)
            for each, change in zip(other["filters"], changes, strict=True)
        ]
        found[f"compared/{page.slug}.js"] = _script("filterscopeCompared", rows)
    return found


def _script(name: str, data: Any) -> bytes:
    # A script instead of a JSON file: a page opened from the disk must not fetch one.
    return f"window.{name} = {json.dumps(data, ensure_ascii=False, separators=(',', ':'))};\n".encode()


def _manifest(pages: Sequence[LayerPage], info: Info) -> dict[str, Any]:
    """Return all numbers and file names of the site, for other programs."""
    return {
        "made_by": MADE_BY,
        **{key: info[key] for key in ("title", "network", "run", "metrics", "classes", "recipes")},
        "images": info["images_hash"],
        "layers": [
            {
                "name": page.name,
                "slug": page.slug,
                "receptive_field": page.field,
                "atlases": list(page.atlases),
                "atlas_grid": grid_shape(len(page.facts)),
                "sheet_layout": asdict(page.layout)["places"],
                "epochs": list(page.epochs),
                "filters": page.facts,
            }
            for page in pages
        ],
    }


def _epochs(pages: Sequence[LayerPage], info: Info) -> dict[str, Any]:
    """Return what the epoch sliders show: the metrics of the run, and the records of every layer."""
    return {
        "metrics": info["metrics"],
        "words": ["", *Verdict],
        "layers": {page.slug: page.epoch_facts for page in pages if page.epochs},
    }


def _search_index(pages: Sequence[LayerPage], info: Info) -> dict[str, Any]:
    """Return what the search of the overview knows: the verdict, the classes and the words of every filter."""
    words = ["", *Verdict]
    return {
        "classes": list(info["classes"]),
        "words": words,
        "layers": [
            {
                "name": page.name,
                "slug": page.slug,
                "filters": [
                    [words.index(each["verdict"]), each["classes"], each.get("sentence", "")] for each in page.facts
                ],
                "active": page.active,
            }
            for page in pages
        ],
    }


def _render(template: str, **context: Any) -> bytes:
    return _environment().get_template(template).render(**context).encode()


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("filterscope.visuals.gallery"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.globals |= {"count_verdicts": _count_verdicts, "grid_shape": grid_shape, "position": _position}
    environment.globals |= {
        "verdicts": list(Verdict),
        "measures": [each for each in all_measures().values() if each.title],
    }
    return environment


def _count_verdicts(verdicts: Sequence[str]) -> dict[str, int]:
    """Return how many filters have each verdict, from the best verdict to the worst."""
    return {verdict: verdicts.count(verdict) for verdict in Verdict if verdict in verdicts}


def _position(count: int, i: int) -> str:
    """Return the CSS position of tile `i` in an atlas of `count` tiles, in percent of any size it is shown at."""
    columns, rows = grid_shape(count)
    x, y = 100 * (i % columns) / max(columns - 1, 1), 100 * (i // columns) / max(rows - 1, 1)
    return f"background-position:{x:.4f}% {y:.4f}%"
