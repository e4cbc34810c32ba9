"""Feature visualization of layers: pictures that activate each channel most, and references to compare them with."""

import dataclasses
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from filterscope.analysis.health.causes import reinitialized_copy
from filterscope.analysis.synthesis import (
    ActivationStatistics,
    Job,
    LayerStatistics,
    Recipe,
    SynthesisResult,
    run_synthesis_worker,
    synthesize_all,
)
from filterscope.analysis.top_patches import top_patches
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.layers import convolutions, find_layer
from filterscope.registry import register
from filterscope.visuals.drawing.tiles import photo
from filterscope.visuals.filter_selection import FilterSelection, check_order, select_filters
from filterscope.visuals.output.outputs import Picture
from filterscope.visuals.progress import progress_bar
from filterscope.visuals.synthesis_sheet import ReferenceColumns, draw_synthesis
from filterscope.visuals.trust import cache_folder, real_statistics, recording_real_statistics
from filterscope.visuals.visual import Examples, RecordLabels, Visual, VisualState, layer_note

_LARGEST = torch.finfo(torch.float16).max
TILE = 88
"""Height and width in pixels of the tiles that the timeline shows of earlier epochs."""


@register("visual", "synthesis")
@dataclass(frozen=True, kw_only=True)
class Synthesis(Visual):
    """Draw one grid of feature visualizations per layer: `synthesis/<layer>`.

    During training a picture is continued from the previous epoch. After the last epoch it is made with all steps and
    from the same noise as before training, so that these two can be compared.

    Attributes:
        recipe: how pictures are made.
        layers: names of layers, `head` for the classes; None: every convolution.
        channels: the number of channels, a list of indices, or None for all.
        samples: number of pictures of each channel, from different noise; `recipe=diverse` makes them differ.
        patches: number of top-activating patches of the examples in each channel's row.
        untrained: whether each channel's row has the picture of the network with random weights.
        order: `number`, or `verdict`: a fair sample from useful to dead, the same during a training, with frames; needs
            the health visual.
        steps: number of steps when a picture is continued; None: as many as the recipe has.
        catch_up: factor on `steps` where in the previous epoch most pictures of a layer activated their channels less
            than real images do, or others more, because the network changes faster than they do.
        cache: folder of finished pictures, which are not made again, also after an interruption; used outside training
            only. None: no cache.
        seed: of the initial noise.
        every: see `Visual`.
    """

    recipe: Recipe = field(default_factory=Recipe)
    layers: Sequence[str] | None = None
    channels: list[int] | int | None = 8
    samples: int = 1
    patches: int = 0
    untrained: bool = False
    order: str = "number"
    steps: int | None = 2
    catch_up: int = 8
    cache: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges of the options."""
        check_order(self.order, where="visuals.synthesis.order")
        for name, least in (("samples", 1), ("patches", 0), ("catch_up", 1)):
            if getattr(self, name) < least:
                raise UserError(f"visuals.synthesis.{name}={getattr(self, name)}; it must be at least {least}")

    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> dict[str, Picture]:
        """Return a picture of every layer that has changed; other ranks must call `run_worker` at the same time."""
        layers = self._layer_names(classifier)
        selected = {
            layer: select_filters(classifier, layer, self.channels, state, order=self.order, keep=f"synthesis/{layer}")
            for layer in layers
        }
        notes = {layer: layer_note(classifier, layer, f"synthesis/{layer}", state) for layer in layers}
        due = [layer for layer in layers if notes[layer] is not None]
        known = real_statistics(classifier, due, examples, state)
        jobs = [self._job(layer, selected[layer].channels, known, state) for layer in due]
        with progress_bar("synthesis", state) as progress:
            cache = cache_folder(self.cache, state)
            results = dict(zip(due, synthesize_all(classifier, jobs, cache=cache, progress=progress), strict=True))
        untrained = self._untrained(classifier, jobs, state)
        pictures = {}
        for layer in due:
            statistics = known.layers.get(layer)
            self._remember(layer, selected[layer].channels, results[layer], statistics, state)
            pictures[f"synthesis/{layer}"] = draw_synthesis(
                results[layer],
                selected[layer],
                layer=layer,
                total=find_layer(classifier.layers, layer).num_channels,
                names=classifier.class_names if layer == "head" else (),
                samples=self.samples,
                references=ReferenceColumns(
                    patches=self._patches(classifier, layer, selected[layer], examples),
                    untrained=untrained.get(layer),
                ),
                statistics=statistics,
                header_note=notes[layer] or "",
            )
        return pictures

    def run_worker(self, classifier: Classifier) -> None:
        """Make this rank's share of the pictures that rank 0 draws."""
        run_synthesis_worker(classifier)
        if self.untrained:
            run_synthesis_worker(reinitialized_copy(classifier))

    def record_validation(self, classifier: Classifier, state: VisualState) -> AbstractContextManager[RecordLabels]:
        """Record the statistics of all validation images, which pictures are compared with."""
        return recording_real_statistics(classifier, self._layer_names(classifier), state)

    def _layer_names(self, classifier: Classifier) -> list[str]:
        names = self.layers if self.layers is not None else convolutions(classifier.layers)
        return [find_layer(classifier.layers, name).name for name in names]

    def _job(self, layer: str, channels: list[int], known: ActivationStatistics, state: VisualState) -> Job:
        start = self._start(layer, channels, state)
        return Job(
            layer=layer,
            channels=self._repeated(channels),
            recipe=self.recipe if start is None else self._continuing_recipe(layer, state),
            # A continued picture needs other random transforms in every epoch.
            seed=self.seed if start is None else self.seed + (state.epoch or 0),
            start=start,
            statistics=known.layers.get(layer),
        )

    def _repeated(self, channels: Sequence[int]) -> tuple[int, ...]:
        """Return the channel of each picture: all samples of one channel, then those of the next."""
        return tuple(channel for channel in channels for _ in range(self.samples))

    def _continuing_recipe(self, layer: str, state: VisualState) -> Recipe:
        """Return the recipe for pictures that are continued from the previous epoch."""
        if self.steps is None:
            return self.recipe
        outdated = state.store["synthesis"][layer].get("outdated", False)
        return dataclasses.replace(self.recipe, steps=self.steps * (self.catch_up if outdated else 1))

    def _start(self, layer: str, channels: list[int], state: VisualState) -> Tensor | None:
        """Return the parameters of the pictures in the previous epoch; None if they start from noise."""
        previous: dict[str, Any] = state.store.get("synthesis", {}).get(layer, {})
        if state.epoch is None or state.last or not set(channels) <= set(previous.get("channels", ())):
            return None
        start: Tensor = previous["parameters"].float()
        if len(start) != len(previous["channels"]) * self.samples:
            return None
        firsts = (previous["channels"].index(channel) * self.samples for channel in channels)
        return start[[first + sample for first in firsts for sample in range(self.samples)]]

    def _remember(
        self,
        layer: str,
        channels: list[int],
        result: SynthesisResult,
        statistics: LayerStatistics | None,
        state: VisualState,
    ) -> None:
        """Store the pictures for the next epoch and for the timeline."""
        tiles = torch.stack([torch.from_numpy(photo(image, TILE)) for image in result.images[:: self.samples]])
        state.store.setdefault("synthesis", {})[layer] = {
            "channels": channels,
            # Every checkpoint contains them; half precision changes a picture by less than one of its 256 levels.
            "parameters": result.parameters.clamp(-_LARGEST, _LARGEST).half(),
            "tiles": tiles,
            "outdated": self._outdated(result, channels, statistics),
        }

    def _outdated(self, result: SynthesisResult, channels: list[int], statistics: LayerStatistics | None) -> bool:
        """Return whether most pictures no longer activate their channels more than real images do."""
        if statistics is None or self.recipe.minimizes:
            return False
        outdated = statistics.multiple(result.activation, self._repeated(channels)) < 1
        if "specific" in self.recipe.weights:
            outdated |= result.rank > 0
        return bool(outdated.float().mean() >= 0.5)

    def _patches(
        self, classifier: Classifier, layer: str, selected: FilterSelection, examples: Examples
    ) -> Tensor | None:
        if not self.patches or not len(examples):
            return None
        return top_patches(classifier, examples.images, layer, selected.channels, count=self.patches)

    def _untrained(self, classifier: Classifier, jobs: Sequence[Job], state: VisualState) -> dict[str, Tensor]:
        """Return a picture of each channel of the network with random weights, by layer, made once in a training."""
        if not self.untrained:
            return {}
        known: dict[str, Any] = state.store.setdefault("untrained", {})
        needed = [
            Job(layer=job.layer, channels=job.channels[:: self.samples], recipe=self.recipe, seed=self.seed)
            for job in jobs
        ]
        missing = [job for job in needed if known.get(job.layer, {}).get("channels") != list(job.channels)]
        with progress_bar("untrained", state) as progress:
            random = reinitialized_copy(classifier)
            results = synthesize_all(random, missing, cache=cache_folder(self.cache, state), progress=progress)
        for job, result in zip(missing, results, strict=True):
            images = (result.images * 255).round().to(torch.uint8)
            known[job.layer] = {"channels": list(job.channels), "images": images}
        return {job.layer: known[job.layer]["images"].float() / 255 for job in needed}
