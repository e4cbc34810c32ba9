"""The gallery visual: a static site with a page for every layer and every filter of a network."""

import dataclasses
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from filterscope.analysis.activations import activations
from filterscope.analysis.filter_inputs import trace_inputs
from filterscope.analysis.synthesis import ActivationStatistics, Job, Recipe, synthesize_all
from filterscope.analysis.synthesis.network import profile_forward
from filterscope.analysis.top_patches import TopResponses, measure_responses
from filterscope.errors import UserError, printable
from filterscope.models.classifier import Classifier
from filterscope.models.layers import find_layer
from filterscope.registry import register
from filterscope.runtime.malloc import return_freed_memory
from filterscope.storage.disk_cache import hash_tensor
from filterscope.visuals.concepts import find_class_words
from filterscope.visuals.drawing.tiles import photo, signed
from filterscope.visuals.filter_selection import convolution_names
from filterscope.visuals.filter_words import known_words
from filterscope.visuals.gallery.circuits import class_evidence, layer_circuits
from filterscope.visuals.gallery.layer_page import (
    RESPONSE,
    LayerFindings,
    LayerPage,
    SampleSet,
    build_layer_page,
    most_active,
)
from filterscope.visuals.gallery.pages import Info, build_site
from filterscope.visuals.gallery.sprites import image_url
from filterscope.visuals.health.findings import filter_facts, rounded
from filterscope.visuals.health.health import Health
from filterscope.visuals.output.site import MANIFEST, Site
from filterscope.visuals.progress import progress_bar
from filterscope.visuals.trust import cache_folder, is_weaker, real_statistics, trust_sentences
from filterscope.visuals.tuning import Tuning, find_tuning_words, tuned_layers
from filterscope.visuals.visual import Every, Examples, LayerChoice, Visual, VisualState, example_name

log = logging.getLogger(__name__)

# Bytes that are reserved besides the pictures of the filters.
FILTER_BYTES = 6_000  # of each filter: its part of the pages, its numbers, its pictures at their lowest quality
LAYER_BYTES = 60_000  # of each layer: its pages and its part of the overview
SITE_BYTES = 60_000  # of the style sheet, the script and the overview
IMAGE_BYTES = 20_000  # of each response image
DRAFT_IMAGES = 200
# Filters that are synthesized together; what is kept of their pictures afterwards takes a tenth of the memory.
PART = 96
# What else takes time, in multiplications of a forward pass that take as long; measured on two cores with AVX2.
VALUE_WORK = 800  # of each step, for each value of a picture: its transform to pixels and their random shifts
PAGE_WORK = 3 * 10**8  # of each filter, for its tiles and its sprite sheet
IMAGES_PER_PATCH = 4  # with fewer images, the "top-activating" patches would be nearly all there are


@register("visual", "gallery")
@dataclass(frozen=True, kw_only=True)
class Gallery(Visual):
    """Write a static site that shows every filter: `gallery/index.html`.

    It shows kernel, synthesized images, top-activating patches, responses, verdict, measures and history of a filter.
    In training, the site is written when training has ended, of the best epoch.

    Attributes:
        layers: names of convolutions; None: all.
        recipes: of the synthesized images, by name; images are at most as large as those of the network.
        samples: images of each filter by each recipe, started from different noise.
        quality: `draft` makes one image of each filter, by the first recipe, with at most 16 steps and 64 pixels, and
            measures on at most `DRAFT_IMAGES` images.
        cache: folder of finished images, which are not made again, such as after an interruption; used outside training
            only. None: no cache.
        patches: top-activating patches of each filter.
        images: images that are searched for patches and that class responses and verdicts are measured on.
        response_images: examples that the response of a filter can be seen on.
        max_megabytes: the upper limit of the site's size; the quality of the pictures is reduced to meet it.
        title: of the site; None: the network and its data.
        health: how filters are judged if training has not judged them.
        tuning: how the sentences on the filters of the first layers are found.
        seed: of the noise that synthesized images start from, and of how images are split to find the filters' classes.
        every: write the site every so many epochs of a training as well, 0: at its end only.
    """

    site: ClassVar[str] = "gallery"
    needs_convolutions: ClassVar[bool] = True
    at_end: ClassVar[bool] = True

    layers: LayerChoice = None
    recipes: Annotated[Mapping[str, Recipe], Field(min_length=1)] = field(default_factory=lambda: {"natural": Recipe()})
    samples: PositiveInt = 1
    quality: Literal["full", "draft"] = "full"
    cache: str | None = None
    patches: PositiveInt = 9
    images: PositiveInt = 500
    response_images: NonNegativeInt = 4
    max_megabytes: float = 100.0
    title: str | None = None
    health: Health = field(default_factory=Health)
    tuning: Tuning = field(default_factory=Tuning)
    seed: int = 0
    every: Every = 0

    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> dict[str, Site]:
        """Return the site.

        Raises:
            UserError: no layer is a convolution, or `max_megabytes` is too small.
        """
        return {"gallery": build_site(*draw_gallery(self, classifier, examples, state))}

    def _bytes_per_filter(self, counts: Mapping[str, int], history: Mapping[str, Mapping[int, Any]]) -> float:
        """Return how many bytes the pictures of one filter may take."""
        total = sum(counts.values())
        fixed = SITE_BYTES + LAYER_BYTES * len(counts) + IMAGE_BYTES * self.response_images
        fixed += sum(record["kernel"].numel() for name in counts for record in history.get(name, {}).values())
        least = math.ceil((fixed + total * FILTER_BYTES) / 1e5) / 10
        if self.max_megabytes < least:
            raise UserError(
                f"visuals.gallery.max_megabytes={self.max_megabytes:g}: {total} filters need at least {least:g}"
            )
        return float((self.max_megabytes * 1e6 - fixed) / total - FILTER_BYTES / 2)

    def _synthesize(
        self,
        classifier: Classifier,
        layer: str,
        count: int,
        known: ActivationStatistics,
        report: Callable[[float], None],
        state: VisualState,
    ) -> list[SampleSet]:
        """Synthesize `samples` images of every filter of a layer by every recipe."""
        sets: list[SampleSet] = []
        statistics = known.layers.get(layer)
        for number, recipe in enumerate(self.recipes.values()):
            parts: list[tuple[Any, ...]] = []  # pictures, captions and `weaker`, each `(samples, filters, …)`
            for own in torch.split(torch.arange(count), PART):
                channels = own.repeat(self.samples).tolist()

                def on_progress(_layer: str, done: float, number: int = number, own: Tensor = own) -> None:
                    report((number + (int(own[0]) + len(own) * done) / count) / len(self.recipes))

                job = Job(layer=layer, channels=tuple(channels), recipe=recipe, seed=self.seed, statistics=known)
                cache, alone = cache_folder(self.cache, state), state.epoch is not None  # rank 0 alone draws galleries
                (made,) = synthesize_all(classifier, [job], cache=cache, progress=on_progress, alone=alone)
                shape = (self.samples, len(own))
                pixels = (made.images * 255).round().to(torch.uint8).view(*shape, *made.images.shape[1:])
                said = np.reshape(trust_sentences(made, channels, statistics), shape)
                less = np.reshape([is_weaker(made, k, i, statistics) for k, i in enumerate(channels)], shape)
                parts.append((pixels, said, less))
            images = torch.cat([part[0] for part in parts], 1)
            captions, weaker = (np.concatenate([part[at] for part in parts], 1).tolist() for at in (1, 2))
            sets += [SampleSet(images=images[k], captions=captions[k], weaker=weaker[k]) for k in range(self.samples)]
        return sets

    def _at_quality(self, image_size: int | None) -> "Gallery":
        """Return the gallery with the recipes and samples that `quality` means for a network's images."""
        limited = self
        if self.quality == "draft":
            name, recipe = next(iter(self.recipes.items()))
            first = {name: dataclasses.replace(recipe, steps=min(recipe.steps, 16), size=min(recipe.size, 64))}
            limited = dataclasses.replace(self, recipes=first, samples=1, images=min(self.images, DRAFT_IMAGES))
        sizes = {name: min(recipe.size, image_size or recipe.size) for name, recipe in limited.recipes.items()}
        recipes = {name: dataclasses.replace(each, size=sizes[name]) for name, each in limited.recipes.items()}
        return dataclasses.replace(limited, recipes=recipes)

    def _picture_work(self, classifier: Classifier, counts: Mapping[str, int]) -> dict[str, float]:
        """Return how much work the pictures of each layer are, in multiplications."""
        work = dict.fromkeys(counts, 0.0)
        for recipe in self.recipes.values():
            values = VALUE_WORK * classifier.in_channels * recipe.size**2 * recipe.steps
            profiles = profile_forward(classifier, [[name] for name in counts], recipe.size)
            for (name, count), profile in zip(counts.items(), profiles, strict=True):
                work[name] += (profile.work * recipe.passes / 2 + values) * self.samples * count
        return work


def draw_gallery(
    gallery: Gallery, classifier: Classifier, examples: Examples, state: VisualState
) -> tuple[list[LayerPage], Info]:
    """Return the contents of the layers' pages and what they have in common, as `build_site` takes them.

    Raises:
        UserError: no layer is a convolution, or `max_megabytes` is too small.
    """
    gallery = gallery._at_quality(classifier.image_size)
    names = convolution_names(classifier, gallery.layers)
    layers = [find_layer(classifier.layers, name) for name in names]
    counts = {layer.name: layer.num_channels or 0 for layer in layers if layer.kind == "conv"}
    if not counts:
        raise UserError(f"a gallery shows filters of convolutions; there is none among {', '.join(names)}")
    history, images = state.store.get("history", {}), state.store.get("history_images")
    recorded = None if images is None else images.float() / 255
    max_bytes = gallery._bytes_per_filter(counts, history)
    real = examples.sample_if_possible(gallery.images)
    min_images = IMAGES_PER_PATCH * gallery.patches
    # Without an epoch, health reuses the verdicts of the training and logs no warnings a second time.
    outside = VisualState(store=state.store)
    if len(real):
        dataclasses.replace(gallery.health, layers=list(counts))(classifier, real, outside)
    return_freed_memory()  # what a stage has freed would lie beside what the next one needs
    tested = real.images[: gallery.tuning.images]
    for layer in tuned_layers(classifier, gallery.tuning.layers):
        if layer in counts:
            find_tuning_words(classifier, layer, tested, outside, seed=gallery.tuning.seed)
    return_freed_memory()
    statistics = real_statistics(classifier, list(counts), real, outside)
    return_freed_memory()
    top = measure_responses(classifier, real.images, list(counts), after_norm=True) if len(real) >= min_images else {}
    for name, measured in top.items():
        find_class_words(name, measured.responses, real, outside, seed=gallery.seed)
    return_freed_memory()
    shown = examples.images[: gallery.response_images]
    active = _find_active(classifier, shown, list(counts), top)
    inputs = trace_inputs(classifier)
    circuits = layer_circuits(classifier, inputs, list(counts))
    pages, done, total = [], 0, sum(counts.values())
    picture_work, before = gallery._picture_work(classifier, counts), 0.0
    whole = sum(picture_work.values()) + PAGE_WORK * total
    with progress_bar("gallery:", state) as progress:
        for name, count in counts.items():
            report = partial(_report, progress, name, before / whole, picture_work[name] / whole)
            findings = LayerFindings(
                samples=gallery._synthesize(classifier, name, count, statistics, report, state),
                top=top.get(name),
                patches=gallery.patches,
                maps=activations(classifier, shown, [name])[name] if len(shown) else None,
                health=filter_facts(state.store.get("health", {}).get(name, {}), count),
                history=history.get(name, {}),
                recorded=recorded,
                circuit=circuits[name],
                active=active[name],
                words=known_words(outside, name),
            )
            return_freed_memory()
            pages.append(build_layer_page(classifier, name, findings, real, max_bytes=max_bytes))
            done, before = done + count, before + picture_work[name] + PAGE_WORK * count
            log.info("gallery: %s, %d of %d filters", name, done, total)
    run = {name: printable(value) for name, value in state.store.get("run", {}).items()}
    network = printable(classifier.backbone.name)
    usual_title = f"{network} on {run['data']}" if run.get("data") else network
    info = {
        "title": printable(gallery.title) if gallery.title else usual_title,
        "name": state.store.get("source", {}).get("name", ""),
        "date": state.store.get("source", {}).get("date", "") or date.today().isoformat(),
        "network": network,
        "run": run,
        "best": _shown_metrics(state),
        "metrics": state.store.get("metrics", {}),
        "classes": list(examples.class_names or map(printable, classifier.class_names)),
        "evidence": class_evidence(classifier, inputs.get("head"), shown, real),
        "images": len(real),
        "images_hash": _hash(real.images),
        "has_labels": real.labels is not None,
        "has_patches": bool(top),
        "min_images": min_images,
        "response_images": [photo(image, 160) for image in shown],
        "response_names": [example_name(examples, i) for i in range(len(shown))],
        "recipes": [name for name in gallery.recipes for _ in range(gallery.samples)],
        "max_megabytes": gallery.max_megabytes,
    }
    return pages, info


def _find_active(
    classifier: Classifier, images: Tensor, layers: Sequence[str], top: Mapping[str, TopResponses]
) -> dict[str, list[list[int]]]:
    """Return the filters of each layer that are most active on each image, compared with their responses to others."""
    if not len(images):
        return {name: [] for name in layers}
    found = measure_responses(classifier, images, layers, after_norm=True)
    return {name: most_active(each.largest, top.get(name, each).usual_peaks) for name, each in found.items()}


def search_image(classifier: Classifier, images: Tensor, folder: Path) -> dict[str, Any]:
    """Return the filters of a gallery that an image activates most, compared with their responses to other images.

    Args:
        classifier: the network of the gallery.
        images: one image, `(1, C, H, W)` in [0, 1].
        folder: of the gallery.

    Returns:
        Plain data: `image`, and for each layer `name` and `filters` as `[filter, times its usual response, map]`;
        pictures are data URLs. The second is None where the usual response is 0 or was not measured.
    """
    layers = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["layers"]
    names = [layer["name"] for layer in layers]
    found = measure_responses(classifier, images, names, after_norm=True)
    maps = activations(classifier, images, names)
    rows = []
    for layer in layers:
        peaks = found[layer["name"]].largest
        usual = torch.tensor([each["usual_peak"] or 0.0 for each in layer["filters"]])
        best = most_active(peaks, usual)[0]
        times = [rounded(float(peaks[0, i] / usual[i]), 2) for i in best]  # a division by 0 becomes None
        tiles = [image_url(signed(maps[layer["name"]][0, i], RESPONSE)) for i in best]
        rows.append({"name": layer["name"], "filters": list(zip(best, times, tiles, strict=True))})
    return {"image": image_url(photo(images[0], 160)), "layers": rows}


def _shown_metrics(state: VisualState) -> dict[str, float]:
    """Return the metrics of the epoch whose network is shown, by name."""
    metrics = state.store.get("metrics", {})
    epoch = state.epoch if state.ended else max(metrics, default=None)
    found = {name: value for name, value in metrics.get(epoch, {}).items() if name.startswith(("val", "test"))}
    return found | ({} if epoch is None else {"epoch": epoch})


def _hash(images: Tensor) -> str:
    """Return a short hash of images, by which runs that were measured on the same images are recognized."""
    # In parts, as copies of all images in floating point take much memory.
    parts = [(part * 255).round().to(torch.uint8) for part in torch.split(images, 64)]
    return hash_tensor(torch.cat(parts))[:16]


def _report(
    progress: Callable[[str, float], None] | None, layer: str, start: float, share: float, fraction: float
) -> None:
    """Report the progress of the whole site when a fraction of a layer is done that is a share of the work."""
    if progress is not None:
        progress(layer, start + share * fraction)
