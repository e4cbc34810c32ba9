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
from filterscope.visuals.gallery.layer_page import VERDICTS, LayerPage
from filterscope.visuals.gallery.sprites import draw_atlas, encode_webp, grid_shape
from filterscope.visuals.health.findings import need_sentence
from filterscope.visuals.output.site import MADE_BY, MANIFEST, Site

MAIN_OPTIONS = {
    "data": "data",
    "data.image_size": "image size",
    "model.weights": "starting weights",
    "head": "head",
    "finetune": "trained layers",
    "optimizer": "optimizer",
    "trainer.max_epochs": "epochs of training",
    "seed": "seed",
}
"""Options of a run that its overview names, in words."""
Info = Mapping[str, Any]
"""What the pages of a site have in common; `draw_gallery` makes it, and the templates read it."""
MAX_IMAGE_BYTES = 20_000  # of a response image
MAX_OVERVIEW_BYTES = 3_000  # of a filter's picture in the overview


def build_site(pages: Sequence[LayerPage], info: Info) -> Site:
    """Return the site: an overview, pages for every layer and its filters, pictures and data.

    Args:
        pages: the contents of the layers' pages, in the order of the network.
        info: what the pages have in common, as `draw_gallery` returns it.
    """
    overview = [tile for page in pages for tile in page.overview.values()]
    content: dict[str, bytes] = {}
    content["atlas/overview.webp"] = encode_webp(draw_atlas(overview), MAX_OVERVIEW_BYTES * len(overview))
    content |= {
        f"images/{i}.webp": encode_webp(each, MAX_IMAGE_BYTES) for i, each in enumerate(info["response_images"])
    }
    content |= style_and_script()
    content["data/epochs.js"] = script_file("filterscopeEpochs", _epochs(pages, info))
    content["data/search.js"] = script_file("filterscopeSearch", _search_index(pages, info))
    content[MANIFEST] = json.dumps(_manifest(pages, info), ensure_ascii=False).encode()
    if info["evidence"]:
        content["data/classes.js"] = script_file("filterscopeClasses", info["evidence"])
        content["classes.html"] = page_html("classes.html.j2", info=info, evidence=info["evidence"])
    content["data/links.js"] = script_file("filterscopeLinks", {page.name: _link(page) for page in pages})
    for i, page in enumerate(pages):
        neighbours = {
            "previous": pages[i - 1] if i else None,
            "following": pages[i + 1] if i + 1 < len(pages) else None,
        }
        content |= page.files | _layer_files(page, info, neighbours)
    context = {
        "pages": pages,
        "info": info,
        "overview_tiles": len(overview),
        "options": {words: info["run"][name] for name, words in MAIN_OPTIONS.items() if name in info["run"]},
        "epochs": len({epoch for page in pages for epoch in page.epochs}),
    }
    # The overview states the size of the site, itself included; the number's digits do not change its length much.
    size = (sum(map(len, content.values())) + len(page_html("index.html.j2", **context, megabytes=0.0))) / 1e6
    content["index.html"] = page_html("index.html.j2", **context, megabytes=size)
    filters = sum(len(page.facts) for page in pages)
    text = (
        f"A gallery of {filters} filters in {len(pages)} layers, {size:.1f} MB: open `gallery/index.html` in a browser."
    )
    return Site(files=content, description=text)


def _layer_files(page: LayerPage, info: Info, neighbours: Mapping[str, LayerPage | None]) -> dict[str, bytes]:
    """Return the pages and the data of a layer by their path below the site."""
    context = {"page": page, "info": info, **neighbours}
    data = {
        "layer": page.name,
        "slug": page.slug,
        "layout": asdict(page.layout),
        "recipes": list(info["recipes"]),
        "epochs": list(page.epochs),
        "classes": list(info["classes"]),
        "images": list(info["response_names"]),
        "logits": info["evidence"]["classes"] if info["evidence"] else [],
        "filters": page.facts,
    }
    return {
        f"layers/{page.slug}.html": page_html("layer.html.j2", **context),
        f"filters/{page.slug}.html": page_html("filter.html.j2", **context),
        f"data/layers/{page.slug}.js": script_file("filterscope", data),
    }


def style_and_script() -> dict[str, bytes]:
    """Return the style sheet and the script of all pages."""
    templates = files("filterscope.visuals.gallery") / "templates"
    return {name: (templates / name).read_bytes() for name in ("gallery.css", "gallery.js")}


def script_file(name: str, data: Any) -> bytes:
    """Return data as a script that sets `window.<name>`: a page opened from the disk must not fetch a JSON file."""
    return f"window.{name} = {json.dumps(data, ensure_ascii=False, separators=(',', ':'))};\n".encode()


def _manifest(pages: Sequence[LayerPage], info: Info) -> dict[str, Any]:
    """Return all numbers and file names of the site, for other programs."""
    return {
        "made_by": MADE_BY,
        **{
            key: info[key]
            for key in ("title", "name", "date", "network", "run", "best", "metrics", "classes", "recipes")
        },
        "images_hash": info["images_hash"],
        "evidence": info["evidence"],
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
        "words": VERDICTS,
        "shown": info["best"].get("epoch"),
        "layers": {page.slug: page.epoch_facts for page in pages if page.epochs},
    }


def _link(page: LayerPage) -> dict[str, Any]:
    """Return what the pages need to show and link a filter of a layer.

    That is the layer's file name, the number of its filters, those of which the best real patch is shown instead of a
    synthesized image, and where the responses to the response images are in the sprite sheets.
    """
    names = [name for name in page.layout.places if name.startswith("response") and "@" not in name]
    return {
        "slug": page.slug,
        "count": len(page.facts),
        "real": page.real,
        "responses": [page.layout.places[name] for name in names],
    }


def _search_index(pages: Sequence[LayerPage], info: Info) -> dict[str, Any]:
    """Return what the search of the overview knows: the verdict, the classes and the words of every filter."""
    return {
        "classes": list(info["classes"]),
        "words": VERDICTS,
        "layers": [
            {
                "name": page.name,
                "filters": [
                    [VERDICTS.index(each["verdict"]), each["classes"], each.get("sentence", "")] for each in page.facts
                ],
                "active": page.active,
            }
            for page in pages
        ],
    }


def page_html(template: str, **context: Any) -> bytes:
    """Return a page made from a template."""
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
        "need_sentence": need_sentence,
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
