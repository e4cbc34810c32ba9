"""Feature visualization of layers: pictures that activate each channel most, and references to compare them with."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor

from filterscope.analysis.health.causes import reinitialized_copy
from filterscope.analysis.synthesis import (
    ActivationStatistics,
    Job,
    Recipe,
    SynthesisResult,
    run_synthesis_worker,
    synthesize_all,
)
from filterscope.analysis.synthesis.network import profile_forward
from filterscope.analysis.top_patches import top_patches
from filterscope.models.classifier import Classifier
from filterscope.models.layers import convolutions, find_layer
from filterscope.registry import register
from filterscope.visuals.drawing.tiles import dotted, photo
from filterscope.visuals.filter_selection import FilterSelection, check_order, select_filters
from filterscope.visuals.output.outputs import Picture
from filterscope.visuals.progress import progress_bar
from filterscope.visuals.synthesis_sheet import ReferenceColumns, draw_synthesis
from filterscope.visuals.trust import cache_folder, is_weaker, real_statistics, recording_real_statistics
from filterscope.visuals.visual import (
    ChannelChoice,
    Examples,
    LayerChoice,
    RecordLabels,
    Visual,
    VisualState,
    layer_note,
)

TILE = 88
"""Height and width in pixels of the tiles that the timeline shows of earlier epochs."""
FEWEST = 2
"""The smallest number of channels of a layer that are drawn in an epoch, as many as the timeline shows."""


@register("visual", "synthesis")
@dataclass(frozen=True, kw_only=True)
class Synthesis(Visual):
    """Draw one grid of feature visualizations per layer: `synthesis/<layer>`.

    Every picture is made from noise with all steps of the recipe, so that it shows what the filter of its epoch
    responds to. All of them are drawn after the last epoch, and before the training of a network that has learned
    something; between, as many as `share` allows. Random weights get `FEWEST` of each layer.

    Attributes:
        recipe: how pictures are made.
        layers: names of layers, `head` for the classes; None: every convolution.
        channels: the number of channels, a list of indices, or None for all.
        samples: number of pictures of each channel, from different noise; `recipe=diverse` makes them differ.
        patches: number of top-activating patches of the examples in each channel's row.
        untrained: whether each channel's row has the picture of the network with random weights.
        order: `number`, or `verdict`: a fair sample from useful to dead, the same during a training, with frames; needs
            the health visual.
        share: the largest share of the computation of an epoch, counted in multiplications, that pictures take. What an
            epoch leaves is saved for later ones. An epoch draws the first channels of every layer, at least
            `FEWEST` of each, or nothing. None: no limit.
        cache: folder of finished pictures, which are not made again, also after an interruption; used outside training
            only. None: no cache.
        seed: of the initial noise.
        every: see `Visual`.
    """

    recipe: Recipe = field(default_factory=Recipe)
    layers: LayerChoice = None
    channels: ChannelChoice = 8
    samples: PositiveInt = 1
    patches: NonNegativeInt = 0
    untrained: bool = False
    order: str = "number"
    share: NonNegativeFloat | None = 0.1
    cache: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        check_order(self.order, where="visuals.synthesis.order")

    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> dict[str, Picture]:
        """Return a picture of every layer that is drawn; other ranks must call `run_worker` at the same time."""
        layers = self._layer_names(classifier)
        selected = {
            layer: select_filters(classifier, layer, self.channels, state, order=self.order, keep=f"synthesis/{layer}")
            for layer in layers
        }
        notes = {layer: layer_note(classifier, layer, f"synthesis/{layer}", state) for layer in layers}
        everything = {layer: selected[layer].channels for layer in layers}
        selected = self._affordable(classifier, {n: selected[n] for n in layers if notes[n] is not None}, state)
        due = list(selected)
        known = real_statistics(classifier, due, examples, state)
        jobs = [self._job(layer, selected[layer].channels, known) for layer in due]
        with progress_bar("synthesis", state) as progress:
            cache = cache_folder(self.cache, state)
            results = dict(zip(due, synthesize_all(classifier, jobs, cache=cache, progress=progress), strict=True))
        untrained = self._untrained(classifier, jobs, state)
        pictures = {}
        for layer, job in zip(due, jobs, strict=True):
            weaker = self._replacements(classifier, job, results[layer], examples)
            self._remember(layer, selected[layer].channels, results[layer], weaker, state)
            state.store["synthesis"][layer]["selected"] = everything[layer]
            pictures[f"synthesis/{layer}"] = draw_synthesis(
                results[layer],
                selected[layer],
                layer=layer,
                total=find_layer(classifier.layers, layer).num_channels,
                names=classifier.class_names if layer == "head" else (),
                samples=self.samples,
                references=ReferenceColumns(
                    patches=self._patches(classifier, layer, selected[layer].channels, examples, self.patches),
                    untrained=untrained.get(layer),
                ),
                replacements=weaker,
                statistics=known.layers.get(layer),
                header_note=notes[layer] or "",
            )
        return pictures

    def unsupported_reason(self, classifier: Classifier) -> str:
        """Return the reason if the network takes images of one size only and the recipe has another one."""
        own = classifier.backbone.image_size
        other = {self.recipe.size, self.recipe.seen} - {own}
        fixed = bool(other) and not any(map(classifier.accepts, (*other, own + 32))) and classifier.accepts(own)
        only = f"{classifier.backbone.name} takes images of {own}×{own} pixels only"
        return f"{only}; choose recipe.size={own} recipe.crop=null" if fixed else super().unsupported_reason(classifier)

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

    def _affordable(
        self, classifier: Classifier, selected: Mapping[str, FilterSelection], state: VisualState
    ) -> dict[str, FilterSelection]:
        """Return the channels that are drawn in this epoch, the same number of each layer; empty if there are none."""
        if self.share is None or state.last or state.epoch_images is None or not selected:
            return dict(selected)
        if not state.epoch:
            pretrained = classifier.backbone.pretrained
            return {n: each if pretrained else each.first(FEWEST) for n, each in selected.items()}
        size = classifier.image_size or classifier.backbone.image_size
        last = list(classifier.layers)[-1]
        passes = profile_forward(classifier, [[last]], size)[0].modules
        trained = sum(
            work
            for path, work in passes.items()
            if any(each.requires_grad for each in classifier.get_submodule(path).parameters(recurse=False))
        )
        # The backward pass of a trained layer computes two gradients, each as costly as the forward pass.
        saved = state.store.get("synthesis_saved", 0.0) + self.share * 3 * trained * state.epoch_images
        profiles = profile_forward(classifier, [[layer] for layer in selected], self.recipe.size)
        costs = [self.samples * self.recipe.passes * profile.work for profile in profiles]

        def cost(count: int) -> float:
            pairs = zip(costs, selected.values(), strict=True)
            return sum(each * min(count, len(selection.channels)) for each, selection in pairs)

        most = max(len(selection.channels) for selection in selected.values())
        count = max((n for n in range(min(FEWEST, most), most + 1) if cost(n) <= saved), default=0)
        state.store["synthesis_saved"] = saved - cost(count)
        return {layer: selection.first(count) for layer, selection in selected.items()} if count else {}

    def _job(self, layer: str, channels: list[int], known: ActivationStatistics) -> Job:
        # All samples of one channel, then those of the next.
        repeated = tuple(channel for channel in channels for _ in range(self.samples))
        return Job(layer=layer, channels=repeated, recipe=self.recipe, seed=self.seed, statistics=known)

    def _remember(
        self,
        layer: str,
        channels: list[int],
        result: SynthesisResult,
        weaker: Mapping[int, Tensor],
        state: VisualState,
    ) -> None:
        """Store small pictures for the timeline and the history; those that real patches replace have a dot."""
        tiles = []
        for i, image in list(enumerate(result.images))[:: self.samples]:
            shown = F.interpolate(weaker[i][None], image.shape[1:], mode="nearest-exact")[0] if i in weaker else image
            tile = photo(shown, TILE)
            tiles.append(torch.from_numpy(dotted(tile) if i in weaker else tile))
        kept = torch.stack(tiles)
        state.store.setdefault("synthesis", {})[layer] = {"channels": channels, "tiles": kept, "epoch": state.epoch}

    def _replacements(
        self, classifier: Classifier, job: Job, result: SynthesisResult, examples: Examples
    ) -> dict[int, Tensor]:
        """Return the best real patch in place of each picture that says less about its channel than a real image does.

        The keys are the indices of these pictures.
        """
        if job.known is None or self.recipe.minimizes:
            return {}
        weak = [
            i
            for i, channel in enumerate(job.channels)
            if job.known.largest[channel] > 0 and is_weaker(result, i, channel, job.known)
        ]
        patches = self._patches(classifier, job.layer, [job.channels[i] for i in weak], examples, 1) if weak else None
        return {} if patches is None else dict(zip(weak, patches[:, 0], strict=True))

    def _patches(
        self, classifier: Classifier, layer: str, channels: list[int], examples: Examples, count: int
    ) -> Tensor | None:
        if not count or not len(examples):
            return None
        return top_patches(classifier, examples.images, layer, channels, count=count)

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
