"""The gallery: a static site with a page for every layer and every filter of a network."""

import dataclasses
import hashlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from filterscope.analysis.activations import activations
from filterscope.analysis.synthesis import ActivationStatistics, LayerStatistics, Recipe, synthesize
from filterscope.analysis.synthesis import Synthesis as Made
from filterscope.analysis.top_patches import peaks
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.layers import convolutions, find_layer
from filterscope.registry import register
from filterscope.visuals.drawing.tiles import photo
from filterscope.visuals.gallery.comparison_gallery import ComparedGallery
from filterscope.visuals.gallery.facts import judged
from filterscope.visuals.gallery.layer_page import ActivationView, SampleFacts, view_of
from filterscope.visuals.gallery.pages import IMAGE, About, site_of
from filterscope.visuals.health.health import Health
from filterscope.visuals.output.site import Site
from filterscope.visuals.progress import progress_bar
from filterscope.visuals.trust import real_statistics, trust_lines
from filterscope.visuals.visual import Every, Examples, Visual, VisualState, example_name

log = logging.getLogger(__name__)

LEAST = 6_000  # bytes that a filter takes at least: pages, numbers and the smallest pictures
LAYER = 60_000  # bytes that a layer takes besides: its pages and its part of the overview
FIXED = 60_000  # bytes of the rest
FEWEST = 4  # images for each crop: the best nine of sixteen would say nothing


@register("visual", "gallery")
@dataclass(frozen=True, kw_only=True)
class Gallery(Visual):
    """Write a site to walk through, `gallery/index.html`: every filter, with what it looks for and what is said of it.

    In a training it is made when that has ended, of the best epoch.

    Attributes:
        layers: names of convolutions; None: all.
        recipes: of the synthesized pictures, by name.
        faces: how many pictures by each recipe, from different noise.
        crops: how many parts of real images stand beside them.
        images: how many examples a filter's response can be seen on.
        pool: how many images crops, classes and verdicts are taken from, where the data is there.
        megabytes: the site is never larger; pictures lose quality where it would be.
        beside: the folder of another gallery, to be compared with.
        title: of the site; None: the network's name.
        health: how filters are judged where training has not.
        seed: of the noise that pictures start from.
        every: make it anew every so many epochs of a training as well, 0: at its end alone.
    """

    site: ClassVar[str] = "gallery"
    at_end: ClassVar[bool] = True

    layers: Sequence[str] | None = None
    recipes: Mapping[str, Recipe] = field(default_factory=lambda: {"specific": Recipe()})
    faces: int = 2
    crops: int = 9
    images: int = 4
    pool: int = 500
    megabytes: float = 100.0
    beside: str | None = None
    title: str | None = None
    health: Health = field(default_factory=Health)
    seed: int = 0
    every: Every = 0

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        for name, least in (("faces", 1), ("crops", 1), ("images", 0), ("pool", 1)):
            if getattr(self, name) < least:
                raise UserError(f"visuals.gallery.{name}={getattr(self, name)}: must be at least {least}")
        if not self.recipes:
            raise UserError("visuals.gallery.recipes names no recipe")

    def unsupported_reason(self, classifier: Classifier) -> str:
        """Say why there is nothing to show, or nothing."""
        return "" if convolutions(classifier.layers) else "the network has no convolutions"

    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> dict[str, Site]:
        """Return the site.

        Raises:
            UserError: a layer is no convolution, the site cannot be as small as asked, the other gallery is none.
        """
        names = self.layers if self.layers is not None else convolutions(classifier.layers)
        layers = [find_layer(classifier.layers, name) for name in names]
        counts = {layer.name: layer.num_channels or 0 for layer in layers if layer.kind == "conv"}
        if not counts:
            raise UserError("a gallery shows the filters of convolutions, and there are none among its layers")
        other = ComparedGallery.read(Path(self.beside).expanduser()) if self.beside else None
        share = self._share(counts, other)
        pool = self._pool(examples)
        # Outside of any epoch: what training said of these very weights holds, and nobody is warned once more.
        known_so_far = VisualState(store=state.store)
        if len(pool):
            dataclasses.replace(self.health, layers=list(counts))(classifier, pool, known_so_far)
        known = real_statistics(classifier, list(counts), pool, known_so_far)
        excited = peaks(classifier, pool.images, list(counts)) if len(pool) >= FEWEST * self.crops else {}
        views, done, total = [], 0, sum(counts.values())
        with progress_bar("gallery:", state) as told:
            for name, count in counts.items():
                tell = partial(_tell, told, name, done / total, count / total)
                seen = ActivationView(
                    faces=self._faces(classifier, name, count, known.layers.get(name), tell),
                    peaks=excited.get(name),
                    crops=self.crops,
                    maps=self._maps(classifier, name, examples),
                    judged=judged(state.store.get("health", {}).get(name, {}), count),
                    history=state.store.get("history", {}).get(name, {}),
                )
                views.append(view_of(classifier, name, seen, pool, share=share))
                done += count
                log.info("gallery: %s, %d of %d filters", name, done, total)
        return {"gallery": site_of(views, self._about(classifier, examples, pool), other)}

    def _share(self, counts: Mapping[str, int], other: ComparedGallery | None) -> float:
        """Return how many bytes the pictures of one filter may take."""
        total = sum(counts.values())
        fixed = FIXED + LAYER * len(counts) + IMAGE * self.images + (other.size if other else 0)
        least = math.ceil((fixed + total * LEAST) / 1e5) / 10
        if self.megabytes < least:
            raise UserError(f"visuals.gallery.megabytes={self.megabytes:g}: {total} filters need at least {least:g}")
        return (self.megabytes * 1e6 - fixed) / total - LEAST / 2

    def _faces(
        self,
        classifier: Classifier,
        name: str,
        count: int,
        known: LayerStatistics | None,
        tell: Callable[[float], None],
    ) -> list[SampleFacts]:
        """Synthesize every filter of a layer by every recipe, as often as it has faces."""
        channels = [i for _ in range(self.faces) for i in range(count)]
        faces = []
        for number, (recipe_name, recipe) in enumerate(self.recipes.items()):
            made = synthesize(
                classifier,
                name,
                channels,
                recipe=recipe,
                seed=self.seed,
                statistics=None if known is None else ActivationStatistics(layers={name: known}),
                progress=partial(_tell_step, tell, number, len(self.recipes)),
            )
            lines = trust_lines(made, channels, known)
            faces += [_face(recipe_name, made, lines, k, count) for k in range(self.faces)]
        return faces

    def _pool(self, examples: Examples) -> Examples:
        """Return as many images as there are, up to the pool; where the data is gone the examples alone."""
        try:
            return examples.sample(self.pool)
        except UserError as error:
            log.warning("gallery: no crops of real images, because the data is not at hand: %s", error)
            return examples

    def _maps(self, classifier: Classifier, name: str, examples: Examples) -> Tensor | None:
        shown = examples.images[: self.images]
        return activations(classifier, shown, [name])[name] if len(shown) else None

    def _about(self, classifier: Classifier, examples: Examples, pool: Examples) -> About:
        return About(
            title=self.title or classifier.backbone.name,
            network=classifier.backbone.name,
            classes=tuple(examples.class_names or classifier.class_names),
            pool=len(pool),
            cropped=len(pool) >= FEWEST * self.crops,
            labelled=pool.labels is not None,
            images=[photo(image, 160) for image in examples.images[: self.images]],
            pool_state=_state(pool.images),
            image_names=[example_name(examples, i) for i in range(min(self.images, len(examples)))],
            recipes=list(self.recipes),
            faces=self.faces,
            bound=self.megabytes,
        )


def _face(recipe: str, made: Made, lines: list[tuple[str, ...]], number: int, count: int) -> SampleFacts:
    part = slice(number * count, (number + 1) * count)
    images: Tensor = (made.images[part] * 255).round().to(torch.uint8)
    return SampleFacts(recipe=recipe, images=images, lines=[", ".join(line) for line in lines[part]])


def _state(images: Tensor) -> str:
    """Return the same short text for the same images, to tell whether two galleries were made with them."""
    return hashlib.sha256((images * 255).round().to(torch.uint8).numpy().tobytes()).hexdigest()[:16]


def _tell(told: Callable[[str, float], None] | None, name: str, before: float, share: float, made: float) -> None:
    """Tell a bar how far all is when so much is made of a layer that is a share of all."""
    if told is not None:
        told(name, before + share * made)


def _tell_step(tell: Callable[[float], None], number: int, recipes: int, step: int, steps: int) -> None:
    tell((number + step / steps) / recipes)
