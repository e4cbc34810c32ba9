"""The data and pictures of one layer's pages: atlases of all filters, a sprite sheet and facts for each filter."""

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from filterscope.analysis.filters import kernels
from filterscope.analysis.health.classes import top_classes
from filterscope.analysis.health.verdict import Verdict
from filterscope.analysis.top_patches import ReceptiveField, TopResponses, cut_patch, receptive_field
from filterscope.models.classifier import Classifier
from filterscope.visuals.drawing.grid import Pixels
from filterscope.visuals.drawing.tiles import coloured_maps, dotted, kernel_tiles, photo, signed
from filterscope.visuals.filter_words import FilterWords
from filterscope.visuals.gallery.circuits import LayerCircuit
from filterscope.visuals.gallery.sprites import SpriteLayout, draw_atlas, encode_webp, image_url, layout_rows
from filterscope.visuals.health.findings import rounded
from filterscope.visuals.visual import Examples, example_name

# Sides in pixels of the tiles in a filter's sprite sheet, of the thumbnails, and of a patch in the atlas of patches.
KERNEL, SAMPLE, PATCH, RESPONSE, EPOCH, THUMBNAIL, SMALL_PATCH = 128, 128, 104, 96, 72, 96, 64
FULL_SIZE_FILTERS = 1024  # layers of more filters have smaller thumbnails
# Of the bytes of a filter's pictures; the sheet is stored as text, which takes a third more.
SHARE_OF_SHEET, SHARE_OF_THUMBNAIL, SHARE_OF_PATCHES, SHARE_OF_HISTORY = 0.75 * 0.75, 0.12, 0.06, 0.07
OVERVIEW_FILTERS = 10  # filters of a layer that the overview shows
COMPARED_PATCHES = 3  # patches of a filter in the atlas, which the comparison of runs shows
KINDS = ("kernel", "synthesis", "patch", "response")  # of tiles that the history holds
VERDICTS = ("", *Verdict)  # by the numbers that the pages' data have for them; the first: not judged
NEIGHBOURS = 6  # most similar filters that the page of a filter links to


@dataclass(frozen=True, kw_only=True)
class SampleSet:
    """One synthesized image of every filter: uint8 `(filters, C, H, W)`, with a caption for each.

    `weaker` says which images tell less about the filter than the best real image.
    """

    images: Tensor
    captions: Sequence[str]
    weaker: Sequence[bool]


@dataclass(frozen=True, kw_only=True)
class LayerFindings:
    """The measurements that the pages of a layer show.

    Attributes:
        samples: the synthesized images, one or more sets of each recipe.
        top: the responses of all filters to real images; None: too few images.
        patches: the number of top-activating patches of each filter.
        maps: feature maps of the response images, `(images, filters, h, w)`; None: no images.
        health: verdict, reason and measures of each filter, as plain data.
        history: the records of the `history` visual by epoch.
        recorded: the images `(N, C, H, W)` in [0, 1] that the recorded patches are cut out of; None: none is recorded.
        circuit: the connections of the filters.
        active: the filters that respond most to each response image, compared with their responses to all images.
        words: what the filters detect, in words; None: not known.
    """

    samples: Sequence[SampleSet]
    top: TopResponses | None
    patches: int
    maps: Tensor | None
    health: Sequence[Mapping[str, Any]]
    history: Mapping[int, Mapping[str, Any]]
    circuit: LayerCircuit
    active: Sequence[Sequence[int]]
    words: FilterWords | None = None
    recorded: Tensor | None = None

    @property
    def epochs(self) -> list[int]:
        """The recorded epochs."""
        return sorted(self.history)

    def layout(self) -> SpriteLayout:
        """Return the layout of the sprite sheets, the same for all filters of the layer."""
        patches = min(self.patches, len(self.top.largest)) if self.top else 0
        maps = len(self.maps) if self.maps is not None else 0
        kinds = [kind for kind in KINDS if any(kind in record for record in self.history.values())]
        return layout_rows(
            [
                {"kernel": (KERNEL, KERNEL), **{f"sample{k}": (SAMPLE, SAMPLE) for k in range(len(self.samples))}},
                {f"patch{k}": (PATCH, PATCH) for k in range(patches)},
                {f"response{k}": (RESPONSE, RESPONSE) for k in range(maps)},
                *self.circuit.rows,
                *({f"{kind}@{place}": (EPOCH, EPOCH) for place in range(len(self.history))} for kind in kinds),
            ]
        )

    def tiles(self, i: int, sources: Sequence[int], images: Tensor, field: ReceptiveField) -> dict[str, Pixels]:
        """Return the tiles of filter `i` by their names in the layout, except for the kernel.

        Args:
            i: the filter.
            sources: the images of its top-activating patches.
            images: all images `(N, C, H, W)` in [0, 1].
            field: the receptive field of the layer.
        """
        tiles = {f"sample{k}": _photo(samples.images[i], SAMPLE) for k, samples in enumerate(self.samples)}
        if self.top is not None:
            for k, source in enumerate(sources):
                position = int(self.top.positions[source, i])
                patch = cut_patch(images, source, position, width=self.top.width, field=field)
                tiles[f"patch{k}"] = photo(patch, PATCH)
        if self.maps is not None:
            tiles |= {f"response{k}": signed(maps[i], RESPONSE) for k, maps in enumerate(self.maps)}
        tiles |= self.circuit.tiles(i)
        for place, epoch in enumerate(self.epochs):
            record = self.history[epoch]
            tiles[f"kernel@{place}"] = _photo(record["kernel"][i].permute(2, 0, 1), EPOCH)
            if "patch" in record:
                tiles[f"patch@{place}"] = photo(self.recorded_patch(record, i, field), EPOCH)
            if "response" in record:
                drawn = torch.from_numpy(np.ascontiguousarray(coloured_maps(record["response"][[i]])[0]))
                tiles[f"response@{place}"] = _photo(drawn.permute(2, 0, 1), EPOCH)
            if i in record.get("channels", ()):
                image = record["synthesis"][record["channels"].index(i)]
                tiles[f"synthesis@{place}"] = _photo(image.permute(2, 0, 1), EPOCH)
        return tiles

    def recorded_patch(self, record: Mapping[str, Any], i: int, field: ReceptiveField) -> Tensor:
        """Return the patch of the recorded images that activated filter `i` most in an epoch, `(C, side, side)`."""
        assert self.recorded is not None
        source, position = record["patch"][i].tolist()
        return cut_patch(self.recorded, source, position, width=record["width"], field=field)

    def facts(self, i: int, sources: Sequence[int], examples: Examples) -> dict[str, Any]:
        """Return the texts and numbers of filter `i` as plain data; `sources` as in `tiles`."""
        records = [self.history[epoch] for epoch in self.epochs]
        largest = self.top.largest[sources, i].tolist() if self.top else []
        captions = [[example_name(examples, source), rounded(v, 3)] for source, v in zip(sources, largest, strict=True)]
        sentences = [record["sentences"][i] if "sentences" in record else "" for record in records]
        return {
            **self.health[i],
            "circuit": self.circuit.facts[i],
            "sentence": self.words.sentences[i] if self.words else "",
            "samples": [samples.captions[i] for samples in self.samples],
            "usual_peak": rounded(float(self.top.usual_peaks[i]), 3) if self.top else None,
            "weaker": all(samples.weaker[i] for samples in self.samples),
            "patches": captions,
            "best": list(sources),
            "history": [str(record["verdicts"][i]) if "verdicts" in record else "" for record in records],
            "sentences": sentences if any(sentences) else [],
            "synthesized": [place for place, record in enumerate(records) if i in record.get("channels", ())],
        }


@dataclass(frozen=True, kw_only=True)
class LayerPage:
    """The contents of a layer's pages.

    Attributes:
        name: the layer's name.
        slug: its name as a file name.
        kernel: the size of its kernels in words.
        drawing: how its kernels are drawn, as returned by `kernel_tiles`.
        field: the side of the receptive field in pixels.
        epochs: the epochs that the slider shows.
        layout: of the sprite sheets.
        atlases: one picture of each filter in one WebP file: `kernels`, `synthesis` and, with images, `patches`.
        history: the same for recorded epochs, as `<kind>-<index of the epoch>`.
        sheets: the sprite sheet of each filter.
        responses: the mean responses of all filters to real images, `(images, filters)`; None: too few images.
        active: the filters that respond most to each response image, compared with their responses to all images.
        circuit: the connections of the filters.
        facts: texts and numbers of each filter, plain data.
        overview: the filters that the overview shows, and their synthesized images, or the best patch of a real image
            where that tells more.
        real: the filters of which the overview shows a real patch.
    """

    name: str
    slug: str
    kernel: str
    drawing: str
    field: int
    epochs: Sequence[int]
    layout: SpriteLayout
    atlases: Mapping[str, bytes]
    history: Mapping[str, bytes]
    sheets: Sequence[bytes]
    responses: Tensor | None
    active: Sequence[Sequence[int]]
    circuit: LayerCircuit
    facts: Sequence[Mapping[str, Any]]
    overview: Mapping[int, Pixels]
    real: Sequence[int]

    @property
    def verdicts(self) -> list[str]:
        """The verdicts of all filters, empty texts where there are none."""
        return [str(each["verdict"]) for each in self.facts]

    @property
    def files(self) -> dict[str, bytes]:
        """All pictures by their path below the site."""
        atlases = {f"atlas/{self.slug}-{name}.webp": content for name, content in self.atlases.items()}
        atlases |= {f"history/{self.slug}-{name}.webp": content for name, content in self.history.items()}
        return atlases | {
            f"sprites/{self.slug}/{i}.js": f'filterscopeSheet({i},"{image_url(sheet)}");'.encode()
            for i, sheet in enumerate(self.sheets)
        }

    @property
    def epoch_facts(self) -> dict[str, Any]:
        """What the epoch slider shows: verdicts of all filters and kinds of pictures, by the index of the epoch."""
        places = range(len(self.epochs))
        return {
            "epochs": list(self.epochs),
            "verdicts": [[VERDICTS.index(each["history"][place]) for each in self.facts] for place in places],
            "kinds": [[kind for kind in KINDS if f"{kind}-{place}" in self.history] for place in places],
            "synthesized": [[i for i, e in enumerate(self.facts) if place in e["synthesized"]] for place in places],
        }


def build_layer_page(
    classifier: Classifier, name: str, findings: LayerFindings, examples: Examples, *, max_bytes: float
) -> LayerPage:
    """Draw the pictures and collect the facts of a layer's pages.

    Args:
        classifier: the network.
        name: of a convolution.
        findings: the measurements to show.
        examples: the images that `findings.top` refers to.
        max_bytes: for the pictures of one filter.
    """
    weights = kernels(classifier, name)
    count, inputs, height, width = weights.shape
    small, drawing = kernel_tiles(weights)
    size = examples.images.shape[-1] if len(examples) else classifier.image_size or classifier.backbone.image_size
    field = receptive_field(classifier, name, size)
    layout = findings.layout()
    classes = preferred_classes(findings.top.responses, examples.labels) if findings.top else [[]] * count
    best = findings.top.best(findings.patches).T.tolist() if findings.top else [[]] * count
    large, _ = kernel_tiles(weights, KERNEL)
    # A browser decodes an atlas as a whole, four bytes a pixel: its size must not grow with the number of filters.
    scale = min(1.0, (FULL_SIZE_FILTERS / count) ** 0.5)
    similar = similar_filters(weights, findings.top)
    side, limit = round(SMALL_PATCH * scale), int(SHARE_OF_SHEET * max_bytes)

    def draw(i: int) -> tuple[bytes, Pixels, Pixels | None]:
        tiles = {"kernel": large[i], **findings.tiles(i, best[i], examples.images, field)}
        return encode_webp(layout.draw(tiles), limit), _patch_row(tiles, side), tiles.get("patch0")

    with ThreadPoolExecutor(torch.get_num_threads()) as threads:  # the encoder and resizing release Python's lock
        drawn = list(threads.map(draw, range(count)))
    sheets, patches, first_patches = zip(*drawn, strict=True)
    weaker = findings.samples[0].weaker
    best_patch = {i: patch for i, patch in enumerate(first_patches) if patch is not None and weaker[i]}
    facts = [
        findings.facts(i, sources, examples)
        | {"classes": classes[i], "similar": {kind: each[i] for kind, each in similar.items()}}
        for i, sources in enumerate(best)
    ]
    samples = findings.samples[0].images
    thumbnails = [_photo(image, round(THUMBNAIL * scale)) for image in samples]
    for i, patch in best_patch.items():
        thumbnails[i] = dotted(_resized(patch, thumbnails[i].shape[1], thumbnails[i].shape[0]))
    atlases = {
        "kernels": encode_webp(draw_atlas(small)),
        "synthesis": encode_webp(draw_atlas(thumbnails), int(SHARE_OF_THUMBNAIL * max_bytes * count)),
    }
    if findings.top is not None:
        atlases["patches"] = encode_webp(draw_atlas(patches), int(SHARE_OF_PATCHES * max_bytes * count))
    return LayerPage(
        name=name,
        slug=file_name(name),
        kernel=f"{height}×{width}, {inputs} input{'s' * (inputs > 1)}",
        drawing=drawing,
        field=field.side,
        epochs=findings.epochs,
        layout=layout,
        atlases=atlases,
        history=_history_atlases(findings, count, field, max_bytes=SHARE_OF_HISTORY * max_bytes * count),
        sheets=sheets,
        responses=findings.top.responses if findings.top else None,
        active=findings.active,
        circuit=findings.circuit,
        facts=facts,
        overview={
            i: _resized(best_patch[i]) if i in best_patch else _photo(samples[i], THUMBNAIL)
            for i in _best_filters(facts, OVERVIEW_FILTERS)
        },
        real=sorted(best_patch),
    )


def file_name(layer: str) -> str:
    """Return the name of a layer as a file name."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", layer).strip(".") or "layer"


def preferred_classes(responses: Tensor, labels: Tensor | None) -> list[list[tuple[int, float]]]:
    """Return for each filter up to five classes it responds to most, with that response as a multiple of its mean one.

    Classes with no more than 1.05 times the mean response are left out.

    Args:
        responses: the mean rectified response of each filter to each image, `(images, filters)`.
        labels: `(images,)`; None if unknown.
    """
    if labels is None or not len(labels):
        return [[] for _ in range(responses.shape[1])]
    preferred = top_classes(responses / responses.mean(0).clamp_min(1e-12), labels, 5)
    return [[(c, float(f"{v:.3g}")) for c, v in each if v > 1.05] for each in preferred]


def most_active(peaks: Tensor, usual: Tensor) -> list[list[int]]:
    """Return for each image the eight filters whose largest response stands out most from their usual one.

    Args:
        peaks: the largest responses to the images, `(images, filters)`.
        usual: the mean largest responses to many images, `(filters,)`.
    """
    best = (peaks / usual.clamp_min(1e-12)).topk(min(8, peaks.shape[1]), dim=1).indices
    return [[i for i in row if peaks[k, i] > 0] for k, row in enumerate(best.tolist())]


def similar_filters(weights: Tensor, top: TopResponses | None) -> dict[str, list[list[tuple[int, float]]]]:
    """Return the filters of a layer that are most similar to each of its filters, most similar first.

    Args:
        weights: the kernels, `(n, inputs, kh, kw)`.
        top: the responses of the filters to real images; None: unknown.

    Returns:
        By kind: `kernel` (cosine of the kernels) and, with images, `responses` (correlation of the mean responses over
        the images); for each filter a list of `(filter, similarity)`, positive similarities only.
    """
    vectors = {"kernel": weights.flatten(1)}
    if top is not None:
        vectors["responses"] = (top.responses - top.responses.mean(0)).T
    found = {}
    for kind, rows in vectors.items():
        unit = F.normalize(rows, dim=1, eps=torch.finfo(rows.dtype).tiny)
        likeness = (unit @ unit.T).fill_diagonal_(-1)
        best = likeness.topk(min(NEIGHBOURS, len(rows)), dim=1)
        found[kind] = [
            [(i, round(value, 2)) for i, value in zip(*row, strict=True) if value > 0.005]
            for row in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
    return found


def _history_atlases(
    findings: LayerFindings, count: int, field: ReceptiveField, *, max_bytes: float
) -> dict[str, bytes]:
    """Return an atlas of all filters for each kind and recorded epoch; kernels are lossless, one pixel per weight."""
    atlases = {}
    limit = int(max_bytes / max(3 * len(findings.epochs), 1))
    for place, epoch in enumerate(findings.epochs):
        record = findings.history[epoch]
        atlases[f"kernel-{place}"] = encode_webp(draw_atlas(record["kernel"].numpy()))
        if "patch" in record:
            patches = [photo(findings.recorded_patch(record, i, field), SMALL_PATCH) for i in range(count)]
            atlases[f"patch-{place}"] = encode_webp(draw_atlas(patches), limit)
        if "response" in record:
            atlases[f"response-{place}"] = encode_webp(draw_atlas(coloured_maps(record["response"])), limit)
        if "synthesis" in record:
            side = record["synthesis"].shape[1]
            tiles = np.full((count, side, side, 3), 128, np.uint8)
            tiles[record["channels"]] = record["synthesis"].numpy()
            atlases[f"synthesis-{place}"] = encode_webp(draw_atlas(tiles), limit)
    return atlases


def _best_filters(facts: Sequence[Mapping[str, Any]], count: int) -> list[int]:
    """Return the filters with the best verdicts; those that are needed most come first within a verdict."""
    values = [each.get("importance_signed", each.get("z")) or 0.0 for each in facts]
    keys = [(VERDICTS.index(each["verdict"]), -value) for each, value in zip(facts, values, strict=True)]
    return sorted(range(len(facts)), key=keys.__getitem__)[:count]


def _photo(image: Tensor, size: int) -> Pixels:
    """Return an image `(C, H, W)` of uint8 as a tile that fits into `size` × `size` pixels."""
    return photo(image.float() / 255, size)


def _resized(tile: Pixels, width: int = THUMBNAIL, height: int = THUMBNAIL) -> Pixels:
    """Return a tile in another size, by default that of a thumbnail."""
    return np.asarray(Image.fromarray(tile).resize((width, height), Image.Resampling.LANCZOS))


def _patch_row(tiles: Mapping[str, Pixels], side: int) -> Pixels:
    """Return the first patches of a filter in a row, each of `side` pixels."""
    row = np.full((side, COMPARED_PATCHES * side, 3), 128, np.uint8)
    for k in range(COMPARED_PATCHES):
        if f"patch{k}" in tiles:
            patch = Image.fromarray(tiles[f"patch{k}"]).resize((side - 2, side - 2), Image.Resampling.BOX)
            row[1:-1, k * side + 1 : (k + 1) * side - 1] = np.asarray(patch)
    return row
