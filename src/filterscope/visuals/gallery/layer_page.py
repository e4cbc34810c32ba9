"""One layer of the gallery: its atlases, a sheet for every filter, and the plain data that the pages show."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from filterscope.analysis.filters import kernels, strongest_inputs
from filterscope.analysis.synthesis.crops import Field, receptive_field
from filterscope.analysis.top_patches import Peaks, cut
from filterscope.models.classifier import Classifier
from filterscope.visuals.drawing.pixels import Pixels, rgb
from filterscope.visuals.drawing.thumbnails import coloured, small_kernels
from filterscope.visuals.drawing.tiles import photo, signed
from filterscope.visuals.filter_selection import COLOURS
from filterscope.visuals.filters import filter_tiles
from filterscope.visuals.gallery.atlas import Atlas, Layout, atlas, layout, within
from filterscope.visuals.gallery.facts import plain, served
from filterscope.visuals.visual import Examples, example_name

KERNEL, FACE, CROP, RESPONSE, STEP, THUMB = 128, 128, 104, 96, 72, 96  # pixels of a side
MANY = 1024  # filters of a layer from which on the pictures of its page are smaller
SAMPLES = 10  # filters that stand for a layer in the overview
STRIP, SMALL = 3, 64  # real images that a comparison shows of a filter, and pixels of their sides there
KINDS = ("kernel", "synthesis", "response")


@dataclass(frozen=True, kw_only=True)
class SampleFacts:
    """One synthesized picture of every filter: uint8 `(filters, C, H, W)`, and a line on how far to trust each."""

    recipe: str
    images: Tensor
    lines: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class ActivationView:
    """What was found out of a layer: `maps` are `(images, filters, h, w)`, `history` what epochs left."""

    faces: Sequence[SampleFacts]
    peaks: Peaks | None
    crops: int
    maps: Tensor | None
    judged: Sequence[Mapping[str, Any]]
    history: Mapping[int, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class LayerPage:
    """What the pages of a layer are made of: plain `facts`, one dict per filter, and the pictures as files.

    `chosen` are the filters that stand for the layer in the overview, `samples` their pictures there.
    """

    name: str
    slug: str
    kernel: str
    way: str
    field: int
    epochs: Sequence[int]
    layout: Layout
    kernels: Atlas
    pictures: Atlas
    crops: Atlas | None
    facts: Sequence[Mapping[str, Any]]
    sheets: Sequence[bytes]
    chosen: Sequence[int]
    samples: Sequence[Pixels]

    @property
    def verdicts(self) -> list[str]:
        """The verdicts of all filters."""
        return [str(each["verdict"]) for each in self.facts]

    @property
    def files(self) -> dict[str, bytes]:
        """All pictures by their path below the site."""
        return {
            f"atlas/{self.slug}-kernels.webp": self.kernels.content,
            f"atlas/{self.slug}-pictures.webp": self.pictures.content,
            **({f"atlas/{self.slug}-crops.webp": self.crops.content} if self.crops else {}),
            **{f"sheets/{self.slug}/{i}.webp": sheet for i, sheet in enumerate(self.sheets)},
        }


def slug_of(name: str) -> str:
    """Return a layer's name as a file's name."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", name).strip(".") or "layer"


def view_of(classifier: Classifier, name: str, seen: ActivationView, examples: Examples, *, share: float) -> LayerPage:
    """Put together what the pages of a layer need.

    Args:
        classifier: the network.
        name: of a convolution.
        seen: what was found out.
        examples: the images that the peaks are of.
        share: bytes for the pictures of one filter.
    """
    weights = kernels(classifier, name)
    small, way = small_kernels(weights)
    epochs = sorted(seen.history)
    field = receptive_field(classifier, name, examples.images.shape[-1] if len(examples) else _size(classifier))
    slots = _slots(seen, epochs)
    inputs = strongest_inputs(weights, 3).tolist() if way == "shared" else None
    classes = served(seen.peaks.responses, examples.labels) if seen.peaks else [[] for _ in weights]
    best = seen.peaks.best(seen.crops) if seen.peaks else None
    drawn = [rgb(tile) for tile in filter_tiles(weights, KERNEL)[0]]
    # A browser decodes and holds an atlas whole, four bytes a pixel: of more filters it has no more of them.
    less = min(1.0, (MANY / len(weights)) ** 0.5)
    facts, sheets, strips = [], [], []
    for i in range(len(weights)):
        sources = best[:, i].tolist() if best is not None else []
        tiles = {"kernel": drawn[i], **_faces(seen, i), **_crops(seen, i, sources, examples, field)}
        tiles |= _responses(seen, i) | _steps(seen, epochs, i)
        sheets.append(within(slots.sheet(tiles), int(0.8 * share)))
        strips.append(_strip(tiles, round(SMALL * less)))
        facts.append(
            {
                **seen.judged[i],
                "classes": classes[i],
                "faces": [face.lines[i] for face in seen.faces],
                "crops": _captions(seen, i, sources, examples),
                "best": sources,
                "inputs": inputs[i] if inputs else [],
                "history": [_verdict(seen.history[epoch], i) for epoch in epochs],
                "synthesized": [place for place, epoch in enumerate(epochs) if _made(seen.history[epoch], i) >= 0],
            }
        )
    thumbs = [photo(image.float() / 255, round(THUMB * less)) for image in seen.faces[0].images]
    chosen = _best(facts, SAMPLES)
    return LayerPage(
        name=name,
        slug=slug_of(name),
        kernel=f"{weights.shape[2]}×{weights.shape[3]}, {weights.shape[1]} input{'s' * (weights.shape[1] > 1)}",
        way=way,
        field=field.side,
        epochs=epochs,
        layout=slots,
        kernels=atlas(small),
        pictures=atlas(thumbs, most=int(0.12 * share * len(weights))),
        crops=atlas(strips, most=int(0.08 * share * len(weights))) if best is not None else None,
        facts=facts,
        sheets=sheets,
        chosen=chosen,
        samples=[photo(seen.faces[0].images[i].float() / 255, THUMB) for i in chosen],
    )


def _best(facts: Sequence[Mapping[str, Any]], count: int) -> list[int]:
    """Return the filters to be shown first: the best verdicts, among them those with most structure."""
    ranks = {verdict: rank for rank, verdict in enumerate(COLOURS)}

    def key(i: int) -> tuple[int, float]:
        return ranks.get(facts[i]["verdict"], len(ranks)), -(facts[i].get("z") or 0.0)

    return sorted(range(len(facts)), key=key)[:count]


def _slots(seen: ActivationView, epochs: Sequence[int]) -> Layout:
    crops = min(seen.crops, len(seen.peaks.largest)) if seen.peaks else 0
    maps = len(seen.maps) if seen.maps is not None else 0
    kinds = [kind for kind in KINDS if any(_has(seen.history[epoch], kind) for epoch in epochs)]
    return layout(
        [
            {"kernel": (KERNEL, KERNEL), **{f"face{k}": (FACE, FACE) for k in range(len(seen.faces))}},
            {f"crop{k}": (CROP, CROP) for k in range(crops)},
            {f"response{k}": (RESPONSE, RESPONSE) for k in range(maps)},
            *({f"{kind}@{place}": (STEP, STEP) for place in range(len(epochs))} for kind in kinds),
        ]
    )


def _size(classifier: Classifier) -> int:
    return classifier.image_size or classifier.backbone.image_size


def _faces(seen: ActivationView, i: int) -> dict[str, Pixels]:
    return {f"face{k}": photo(face.images[i].float() / 255, FACE) for k, face in enumerate(seen.faces)}


def _crops(seen: ActivationView, i: int, sources: Sequence[int], examples: Examples, field: Field) -> dict[str, Pixels]:
    if seen.peaks is None:
        return {}
    places, width = seen.peaks.places[:, i], seen.peaks.width
    parts = [cut(examples.images, source, int(places[source]), width=width, field=field) for source in sources]
    return {f"crop{k}": photo(part, CROP) for k, part in enumerate(parts)}


def _strip(tiles: Mapping[str, Pixels], side: int) -> Pixels:
    """Return the first crops of a filter in a row, each of so many pixels."""
    row = np.full((side, STRIP * side, 3), 128, np.uint8)
    for k in range(STRIP):
        if f"crop{k}" in tiles:
            crop = Image.fromarray(tiles[f"crop{k}"])
            drawn = crop.resize((side - 2, side - 2), Image.Resampling.BOX)
            row[1:-1, k * side + 1 : (k + 1) * side - 1] = np.asarray(drawn)
    return row


def _captions(
    seen: ActivationView, i: int, sources: Sequence[int], examples: Examples
) -> list[tuple[str, float | None]]:
    if seen.peaks is None:
        return []
    return [(example_name(examples, source), plain(float(seen.peaks.largest[source, i]), 3)) for source in sources]


def _responses(seen: ActivationView, i: int) -> dict[str, Pixels]:
    if seen.maps is None:
        return {}
    return {f"response{k}": signed(each[i], RESPONSE).rgb() for k, each in enumerate(seen.maps)}


def _steps(seen: ActivationView, epochs: Sequence[int], i: int) -> dict[str, Pixels]:
    tiles = {}
    for place, epoch in enumerate(epochs):
        known = seen.history[epoch]
        tiles[f"kernel@{place}"] = _enlarged(known["kernels"][i].numpy())
        if "responses" in known:
            tiles[f"response@{place}"] = _enlarged(coloured(known["responses"][[i]])[0])
        if (made := _made(known, i)) >= 0:
            tiles[f"synthesis@{place}"] = photo(known["synthesis"][made].permute(2, 0, 1).float() / 255, STEP)
    return tiles


def _enlarged(pixels: Pixels) -> Pixels:
    return photo(torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1).float() / 255, STEP)


def _has(known: Mapping[str, Any], kind: str) -> bool:
    return {"kernel": "kernels", "synthesis": "synthesis", "response": "responses"}[kind] in known


def _made(known: Mapping[str, Any], i: int) -> int:
    """Return where the picture of a filter lies among those that an epoch left, −1: nowhere."""
    channels = known.get("channels", [])
    return channels.index(i) if i in channels else -1


def _verdict(known: Mapping[str, Any], i: int) -> str:
    return str(known["verdicts"][i]) if "verdicts" in known else ""
