"""Pictures of many layers: shared out over the processes of a distributed run, and none made twice."""

import itertools
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from filterscope.analysis.hooks import device_of, observing
from filterscope.analysis.synthesis.layer_renderer import LayerRenderer, Synthesis, placed
from filterscope.analysis.synthesis.micro_batches import (
    check_channels,
    micro_batch_size,
    samples_per_channel,
    split_channels,
)
from filterscope.analysis.synthesis.network import ForwardProfile, frozen_copy, profile_forward
from filterscope.analysis.synthesis.optimize import in_bf16
from filterscope.analysis.synthesis.parameterization import Parameterization
from filterscope.analysis.synthesis.picture_cache import PictureCache
from filterscope.analysis.synthesis.recipe import Recipe
from filterscope.analysis.synthesis.trust import LayerStatistics
from filterscope.models.classifier import Classifier
from filterscope.models.layers import find_layer

Progress = Callable[[str, float], None]
"""Is told which layer is being worked on and which share of all work is done, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Pictures to make of one layer's channels, said as in `synthesize`.

    With `directions` `(D, K)` in channel space, `channels` and `statistics` are of these instead.
    """

    layer: str
    channels: tuple[int, ...]
    recipe: Recipe
    seed: int = 0
    start: Tensor | None = None
    statistics: LayerStatistics | None = None
    directions: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """One micro-batch of a job: `places` among its channels, filled up to `count`; `work` multiplications."""

    job: int
    places: tuple[int, ...]
    count: int
    work: int


def synthesize_all(
    classifier: Classifier,
    jobs: Sequence[Job],
    *,
    keep: Path | None = None,
    progress: Progress | None = None,
) -> list[Synthesis]:
    """Make the pictures of several jobs, the same bits with any number of processes.

    In a distributed run the first process alone calls this, while every other one calls `assist`: micro-batches are
    dealt out by their work, and all pictures come back to the first.

    Args:
        classifier: is left exactly as it was; the same weights in all processes.
        jobs: what to make.
        keep: folder of pictures that are done, which are not made again and are joined by the new ones as they get
            done; pictures then have 8 bits, new or found. Jobs with a start are not kept. None: nothing is kept.
        progress: is told after every step how far this process is.

    Raises:
        UserError: as `synthesize`, before anything is made.
    """
    with observing(classifier), torch.no_grad():
        plan: list[_Batch] = []
        parts: list[list[tuple[Sequence[int], Synthesis]]] = []
        kept: list[PictureCache | None] = []
        reaches = _reaches(classifier, jobs)
        for number, (job, reach) in enumerate(zip(jobs, reaches, strict=True)):
            count = _check(classifier, job, reach)
            kept.append(_kept(classifier, job, reach, count, keep))
            found = _found(job, kept[-1])
            parts.append([((place,), pictures) for place, pictures in found.items()])
            plan += _batches(number, job, reach, count, done=found)
        made = _together(classifier, jobs, reaches, plan, kept, progress)
    for batch, pictures in zip(plan, made, strict=True):
        parts[batch.job].append((batch.places, pictures))
    return [placed(each) for each in parts]


def run_synthesis_worker(classifier: Classifier) -> None:
    """Do this process's share of what the first one's `synthesize_all` deals out."""
    with observing(classifier), torch.no_grad():
        _together(classifier, [], [], [], [], None)


def deal(work: Sequence[int], hands: int) -> list[int]:
    """Return for each piece of work whose it is, so that nobody has much more than others; the largest go first."""
    loads = [0] * hands
    owners = [0] * len(work)
    for piece in sorted(range(len(work)), key=lambda i: (-work[i], i)):
        owners[piece] = loads.index(min(loads))
        loads[owners[piece]] += work[piece]
    return owners


def _together(
    classifier: Classifier,
    jobs: Sequence[Job],
    reaches: Sequence[ForwardProfile],
    plan: Sequence[_Batch],
    kept: Sequence[PictureCache | None],
    progress: Progress | None,
) -> list[Synthesis]:
    """Return the plan's pictures, in its order, where it was made; elsewhere nothing."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return _make(classifier, jobs, reaches, plan, kept, progress)
    first, processes = dist.get_rank() == 0, dist.get_world_size()
    message: list[Any] = [jobs, reaches, plan, kept]
    dist.broadcast_object_list(message, src=0)
    jobs, reaches, plan, kept = message
    owners = deal([batch.work for batch in plan], processes)
    own = [batch for batch, owner in zip(plan, owners, strict=True) if owner == dist.get_rank()]
    made = _make(classifier, jobs, reaches, own, kept, progress)
    gathered: list[Any] | None = [None] * processes if first else None
    dist.gather_object(made, gathered, dst=0)
    if gathered is None:
        return []
    hands = [iter(each) for each in gathered]
    return [next(hands[owner]) for owner in owners]


def _make(
    classifier: Classifier,
    jobs: Sequence[Job],
    reaches: Sequence[ForwardProfile],
    plan: Sequence[_Batch],
    kept: Sequence[PictureCache | None],
    progress: Progress | None,
) -> list[Synthesis]:
    total, before = sum(batch.work for batch in plan), 0
    made = []
    twins: dict[tuple[bool, bool], Classifier] = {}
    for number, batches in itertools.groupby(plan, key=lambda batch: batch.job):
        job, kept_here = jobs[number], kept[number]
        alike = job.recipe.normalize, in_bf16(job.recipe, device_of(classifier))
        if alike not in twins:
            twins[alike] = frozen_copy(classifier)
        bench = LayerRenderer(
            classifier,
            job.layer,
            recipe=job.recipe,
            statistics=job.statistics,
            directions=job.directions,
            reach=reaches[number],
            network=twins[alike],
        )
        faces = samples_per_channel(job.channels)
        for batch in batches:
            own = [job.channels[place] for place in batch.places], [faces[place] for place in batch.places]
            start = None if job.start is None else job.start[list(batch.places)]
            told = _tell(progress, job, before / total, batch.work / total)
            pictures = bench.make(*own, count=batch.count, seed=job.seed, start=start, stepped=told)
            made.append(pictures if kept_here is None else kept_here.put(*own, pictures))
            before += batch.work
    return made


def _reaches(classifier: Classifier, jobs: Sequence[Job]) -> list[ForwardProfile]:
    """Look once at each size of pictures, for all jobs."""
    reaches: dict[int, ForwardProfile] = {}
    for size in {job.recipe.size for job in jobs}:
        numbers = [number for number, job in enumerate(jobs) if job.recipe.size == size]
        groups = [[find_layer(classifier.layers, jobs[number].layer).name] for number in numbers]
        reaches.update(zip(numbers, profile_forward(classifier, groups, size), strict=True))
    return [reaches[number] for number in range(len(jobs))]


def _check(classifier: Classifier, job: Job, reach: ForwardProfile) -> int:
    """Return the job's micro-batch; a `UserError` where it cannot be done."""
    parameterisation = Parameterization(recipe=job.recipe, channels=classifier.in_channels)
    ((layer, shape),) = reach.shapes.items()
    there = shape[0] if job.directions is None else len(job.directions)
    check_channels(job.channels, job.start, layer=layer, count=there, parameterisation=parameterisation)
    return micro_batch_size(reach, job.recipe, device_of(classifier), len(job.channels))


def _batches(number: int, job: Job, reach: ForwardProfile, count: int, *, done: Container[int]) -> list[_Batch]:
    places = [place for place in range(len(job.channels)) if place not in done]
    batches = []
    for batch in split_channels([job.channels[place] for place in places], count, by_channel=job.recipe.compares):
        size = len(batch) if job.recipe.compares else count
        work = reach.work * size * job.recipe.steps
        batches.append(_Batch(job=number, places=tuple(places[i] for i in batch), count=size, work=work))
    return batches


def _kept(
    classifier: Classifier, job: Job, reach: ForwardProfile, count: int, folder: Path | None
) -> PictureCache | None:
    if folder is None or job.start is not None:
        return None
    known = () if job.statistics is None else vars(job.statistics).values()
    tensors = [value for value in (*known, job.directions) if isinstance(value, Tensor)]
    return PictureCache.of(classifier, reach, folder, job.layer, job.recipe, (job.seed, count), tensors)


def _found(job: Job, kept: PictureCache | None) -> dict[int, Synthesis]:
    """Return the pictures that are done, by their places among the job's; of compared faces all or none."""
    if kept is None:
        return {}
    faces = samples_per_channel(job.channels)
    looked = {place: kept.find(job.channels[place], faces[place]) for place in range(len(faces))}
    found = {place: made for place, made in looked.items() if made is not None}
    if job.recipe.compares:
        lacking = {job.channels[place] for place, made in looked.items() if made is None}
        found = {place: made for place, made in found.items() if job.channels[place] not in lacking}
    return found


def _tell(progress: Progress | None, job: Job, before: float, share: float) -> Callable[[int], None]:
    if progress is None:
        return lambda _step: None
    return lambda step: progress(job.layer, before + share * step / job.recipe.steps)
