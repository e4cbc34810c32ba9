"""Pictures that excite a channel most, with how far to trust each, and beside them what they can be held against."""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from filterscope.analysis.health.spectrum import reinitialized_copy
from filterscope.analysis.synthesis import (
    ActivationStatistics,
    Job,
    LayerStatistics,
    Recipe,
    run_synthesis_worker,
    synthesize_all,
    top_crops,
)
from filterscope.analysis.synthesis import Synthesis as Made
from filterscope.errors import UserError
from filterscope.models.classifier import Classifier
from filterscope.models.layers import convolutions, find_layer
from filterscope.registry import register
from filterscope.visuals.drawing.tiles import photo
from filterscope.visuals.filter_selection import FilterSelection, check_order, select_filters
from filterscope.visuals.output.outputs import Picture
from filterscope.visuals.progress import progress_bar
from filterscope.visuals.synthesis_sheet import ReferenceColumns, draw_synthesis
from filterscope.visuals.trust import real_statistics, watching_statistics
from filterscope.visuals.visual import Examples, Visual, VisualState, epoch_label, redraw_note

_LARGEST = torch.finfo(torch.float16).max
KEPT = 88  # pixels of the side of the tiles that strips show of earlier epochs


@register("visual", "synthesis")
@dataclass(frozen=True, kw_only=True)
class Synthesis(Visual):
    """Draw synthesized pictures of the channels of each convolution, one grid per layer: `synthesis/<layer>`.

    While a network is trained, a picture goes on from where it stood after the epoch before. After the last epoch it is
    made anew, with all steps and from the same noise as before training, so that these two can be compared.

    Attributes:
        recipe: how pictures are made.
        layers: names of layers, `head` for the classes; None: every convolution.
        channels: the first so many, a list of indices, or None for all.
        faces: pictures of each channel, from different noise; a recipe with `diversity` holds them apart.
        crops: beside each channel, so many parts of the examples that excite it most.
        untrained: beside each channel, the same picture of the network with random weights.
        order: `number`, or `verdict`: a fair sample from useful to dead, the same over a training, framed; needs the
            health visual.
        steps: of ascent where a picture goes on from the epoch before; None: as many as the recipe says, as at first.
        catch_up: times as many steps where most pictures of a layer excited their channels less than real images do, or
            others more, after the epoch before: the network changes faster than they do.
        keep: folder in which finished pictures are kept, so that none is made twice, not even after an interruption;
            outside training only. None: nowhere.
        seed: of the noise that pictures start from.
        every: draw every so many epochs, 0: before training only.
    """

    recipe: Recipe = field(default_factory=Recipe)
    layers: Sequence[str] | None = None
    channels: list[int] | int | None = 8
    faces: int = 1
    crops: int = 0
    untrained: bool = False
    order: str = "number"
    steps: int | None = 2
    catch_up: int = 8
    keep: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        check_order(self.order, where="visuals.synthesis.order")
        for name, value, least in (("faces", self.faces, 1), ("crops", self.crops, 0), ("catch_up", self.catch_up, 1)):
            if value < least:
                raise UserError(f"visuals.synthesis.{name}={value}; it must be at least {least}")

    def __call__(self, classifier: Classifier, examples: Examples, state: VisualState) -> dict[str, Picture]:
        """Return a picture of the syntheses of every layer that has something new to show.

        In a distributed run the other processes must call `assist` meanwhile.
        """
        layers = self._names(classifier)
        chosen = {
            layer: select_filters(classifier, layer, self.channels, state, order=self.order, keep=f"synthesis/{layer}")
            for layer in layers
        }
        still = {
            layer: redraw_note(classifier, layer, f"synthesis/{layer}", state, extra=chosen[layer].digest)
            for layer in layers
        }
        due = [layer for layer in layers if still[layer] is not None]
        known = real_statistics(classifier, due, examples, state)
        jobs = [self._job(layer, chosen[layer].channels, known, state) for layer in due]
        keep = Path(self.keep).expanduser() if self.keep and state.epoch is None else None
        with progress_bar("synthesis", state) as progress:
            made = dict(zip(due, synthesize_all(classifier, jobs, keep=keep, progress=progress), strict=True))
        untrained = self._untrained(classifier, jobs, keep, state)
        pictures = {}
        for layer in due:
            self._remember(layer, chosen[layer].channels, made[layer], known.layers.get(layer), state)
            beside = ReferenceColumns(
                crops=self._crops(classifier, layer, chosen[layer], examples), untrained=untrained.get(layer)
            )
            pictures[f"synthesis/{layer}"] = draw_synthesis(
                made[layer],
                chosen[layer],
                layer=layer,
                total=find_layer(classifier.layers, layer).num_channels,
                names=classifier.class_names if layer == "head" else (),
                faces=self.faces,
                beside=beside,
                statistics=known.layers.get(layer),
                aside=epoch_label(state),
                still=still[layer] or "",
            )
        return pictures

    def run_worker(self, classifier: Classifier) -> None:
        """Make this process's share of the pictures that the first process draws."""
        run_synthesis_worker(classifier)
        if self.untrained:
            run_synthesis_worker(reinitialized_copy(classifier))

    def record_validation(
        self, classifier: Classifier, state: VisualState
    ) -> AbstractContextManager[Callable[[Tensor | None], None], bool | None]:
        """Watch a validation pass, so that pictures are held against all of its images."""
        return watching_statistics(classifier, self._names(classifier), state)

    def _names(self, classifier: Classifier) -> list[str]:
        names = self.layers if self.layers is not None else convolutions(classifier.layers)
        return [find_layer(classifier.layers, name).name for name in names]

    def _job(self, layer: str, channels: list[int], known: ActivationStatistics, state: VisualState) -> Job:
        start = self._start(layer, channels, state)
        return Job(
            layer=layer,
            channels=tuple(channel for channel in channels for _ in range(self.faces)),
            recipe=self.recipe if start is None else self._going_on(layer, state),
            seed=self.seed
            if start is None
            else self.seed + (state.epoch or 0),  # other shifts and turns in every epoch
            start=start,
            statistics=known.layers.get(layer),
        )

    def _going_on(self, layer: str, state: VisualState) -> Recipe:
        """Return the recipe for pictures that go on from the epoch before."""
        if self.steps is None:
            return self.recipe
        lost = state.store["synthesis"][layer].get("lost", False)
        return dataclasses.replace(self.recipe, steps=self.steps * (self.catch_up if lost else 1))

    def _start(self, layer: str, channels: list[int], state: VisualState) -> Tensor | None:
        """Return where the pictures stood after the epoch before; None where they are to start from noise."""
        left: dict[str, Any] = state.store.get("synthesis", {}).get(layer, {})
        if state.epoch is None or state.last or not set(channels) <= set(left.get("channels", ())):
            return None
        start: Tensor = left["parameters"].float()
        if len(start) != len(left["channels"]) * self.faces:
            return None
        first = (left["channels"].index(channel) * self.faces for channel in channels)
        return start[[place + face for place in first for face in range(self.faces)]]

    def _remember(
        self, layer: str, channels: list[int], made: Made, known: LayerStatistics | None, state: VisualState
    ) -> None:
        small = torch.stack([torch.from_numpy(photo(image, KEPT)) for image in made.images[:: self.faces]])
        state.store.setdefault("synthesis", {})[layer] = {
            "channels": channels,
            # Every checkpoint holds them; half the bytes move a picture by less than one of its 256 shades.
            "parameters": made.parameters.clamp(-_LARGEST, _LARGEST).half(),
            "tiles": small,
            "lost": self._lost(made, channels, known),
        }

    def _lost(self, made: Made, channels: list[int], known: LayerStatistics | None) -> bool:
        """Return whether most pictures no longer show what they should."""
        if known is None or self.recipe.descends:
            return False
        each = [channel for channel in channels for _ in range(self.faces)]
        lost = known.multiple(made.activation, each) < 1
        if "specific" in self.recipe.weights:
            lost |= made.rank > 0
        return bool(lost.float().mean() >= 0.5)

    def _crops(self, classifier: Classifier, layer: str, picked: FilterSelection, examples: Examples) -> Tensor | None:
        if not self.crops or not len(examples):
            return None
        return top_crops(classifier, examples.images, layer, picked.channels, count=self.crops).images

    def _untrained(
        self, classifier: Classifier, jobs: Sequence[Job], keep: Path | None, state: VisualState
    ) -> dict[str, Tensor]:
        """Return one picture of each channel of the network with random weights, by layer, made once in a training."""
        if not self.untrained:
            return {}
        known: dict[str, Any] = state.store.setdefault("untrained", {})
        cold = [
            dataclasses.replace(
                job,
                channels=job.channels[:: self.faces],
                recipe=self.recipe,
                seed=self.seed,
                start=None,
                statistics=None,
            )
            for job in jobs
        ]
        lacking = [job for job in cold if known.get(job.layer, {}).get("channels") != list(job.channels)]
        with progress_bar("untrained", state) as progress:
            made = synthesize_all(reinitialized_copy(classifier), lacking, keep=keep, progress=progress)
        for job, each in zip(lacking, made, strict=True):
            images = (each.images * 255).round().to(torch.uint8)
            known[job.layer] = {"channels": list(job.channels), "images": images}
        return {job.layer: known[job.layer]["images"].float() / 255 for job in cold}
