"""Pictures of many layers: distributed over the ranks of a run, and read from a cache where they are finished."""

import itertools
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from filterscope.analysis.hooks import device_of, observing
from filterscope.analysis.synthesis.cache import PictureCache
from filterscope.analysis.synthesis.network import ForwardProfile, frozen_copy, profile_forward
from filterscope.analysis.synthesis.optimize import uses_bf16
from filterscope.analysis.synthesis.parameterization import Parameterization
from filterscope.analysis.synthesis.recipe import Recipe
from filterscope.analysis.synthesis.renderer import (
    LayerRenderer,
    SynthesisResult,
    check_channels,
    merge_results,
    micro_batch_size,
    sample_numbers,
    split_channels,
)
from filterscope.analysis.synthesis.trust import LayerStatistics
from filterscope.models.classifier import Classifier
from filterscope.models.layers import find_layer

Progress = Callable[[str, float], None]
"""Is called with the name of the current layer and the finished fraction of all work, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Pictures to be made of one layer; the fields are arguments of `synthesize`.

    With `directions` `(D, K)` in channel space, `channels` and `statistics` refer to these instead.
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
    """A micro-batch of the job with number `job`: indices of its channels, filled up to `count` pictures.

    `work` is the number of multiplications.
    """

    job: int
    indices: tuple[int, ...]
    count: int
    work: int


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """All jobs with their forward profiles and caches, and the micro-batches that are left to do."""

    jobs: Sequence[Job] = ()
    profiles: Sequence[ForwardProfile] = ()
    caches: Sequence[PictureCache | None] = ()
    batches: Sequence[_Batch] = ()


def synthesize_all(
    classifier: Classifier,
    jobs: Sequence[Job],
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> list[SynthesisResult]:
    """Make the pictures of several jobs, with the same bits for any number of ranks.

    In a distributed run rank 0 calls this, while every other rank calls `run_synthesis_worker`. Micro-batches are
    distributed by their work, and rank 0 gets all pictures.

    Args:
        classifier: is left exactly as it was; has the same weights on all ranks.
        jobs: the pictures to be made.
        cache: folder of finished pictures. Those in it are not made again, and new ones are added as they are
            finished; all pictures then have 8 bits a channel. Jobs with a start are not cached. None: no cache.
        progress: is called after every step with the progress of this rank.

    Raises:
        UserError: as `synthesize`, before any picture is made.
    """
    with observing(classifier), torch.no_grad():
        profiles = _profiles(classifier, jobs)
        caches: list[PictureCache | None] = []
        batches: list[_Batch] = []
        parts: list[list[tuple[Sequence[int], SynthesisResult]]] = []
        for number, (job, profile) in enumerate(zip(jobs, profiles, strict=True)):
            count = _checked_batch_size(classifier, job, profile)
            caches.append(_cache_of(classifier, job, profile, count, cache))
            finished = _finished(job, caches[-1])
            parts.append([((index,), result) for index, result in finished.items()])
            batches += _batches(number, job, profile, count, finished=finished)
        plan = _Plan(jobs=jobs, profiles=profiles, caches=caches, batches=batches)
        for batch, result in zip(batches, _run_on_all_ranks(classifier, plan, progress), strict=True):
            parts[batch.job].append((batch.indices, result))
    return [merge_results(each) for each in parts]


def run_synthesis_worker(classifier: Classifier) -> None:
    """Do this rank's share of the work that `synthesize_all` on rank 0 distributes."""
    with observing(classifier), torch.no_grad():
        _run_on_all_ranks(classifier, _Plan(), None)


def assign_to_ranks(work: Sequence[int], ranks: int) -> list[int]:
    """Return a rank for each piece of work, largest pieces first, so that all ranks have about the same work."""
    loads = [0] * ranks
    owners = [0] * len(work)
    for piece in sorted(range(len(work)), key=lambda i: (-work[i], i)):
        owners[piece] = loads.index(min(loads))
        loads[owners[piece]] += work[piece]
    return owners


def _run_on_all_ranks(classifier: Classifier, plan: _Plan, progress: Progress | None) -> list[SynthesisResult]:
    """Return the results of the plan's batches, in its order, on rank 0, and nothing on other ranks."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return _run(classifier, plan, plan.batches, progress)
    message: list[Any] = [plan]
    dist.broadcast_object_list(message, src=0)
    plan = message[0]
    owners = assign_to_ranks([batch.work for batch in plan.batches], dist.get_world_size())
    own = [batch for batch, owner in zip(plan.batches, owners, strict=True) if owner == dist.get_rank()]
    results = _run(classifier, plan, own, progress)
    gathered: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(results, gathered, dst=0)
    if gathered is None:
        return []
    by_rank = [iter(each) for each in gathered]
    return [next(by_rank[owner]) for owner in owners]


def _run(
    classifier: Classifier, plan: _Plan, batches: Sequence[_Batch], progress: Progress | None
) -> list[SynthesisResult]:
    total, before = sum(batch.work for batch in batches), 0
    results = []
    copies: dict[tuple[bool, bool], Classifier] = {}  # by what decides how the copy's modules are prepared
    for number, group in itertools.groupby(batches, key=lambda batch: batch.job):
        job, cache = plan.jobs[number], plan.caches[number]
        kind = job.recipe.normalize, uses_bf16(job.recipe, device_of(classifier))
        if kind not in copies:
            copies[kind] = frozen_copy(classifier)
        renderer = LayerRenderer(
            classifier,
            job.layer,
            recipe=job.recipe,
            statistics=job.statistics,
            directions=job.directions,
            profile=plan.profiles[number],
            copied=copies[kind],
        )
        samples = sample_numbers(job.channels)
        for batch in group:
            own = [job.channels[index] for index in batch.indices], [samples[index] for index in batch.indices]
            result = renderer.render(
                *own,
                count=batch.count,
                seed=job.seed,
                start=None if job.start is None else job.start[list(batch.indices)],
                on_step=_step_counter(progress, job, before / total, batch.work / total),
            )
            results.append(result if cache is None else cache.put(*own, result))
            before += batch.work
    return results


def _profiles(classifier: Classifier, jobs: Sequence[Job]) -> list[ForwardProfile]:
    """Return the forward profile of each job, with one forward pass for each size of pictures."""
    profiles: dict[int, ForwardProfile] = {}
    for size in {job.recipe.size for job in jobs}:
        numbers = [number for number, job in enumerate(jobs) if job.recipe.size == size]
        groups = [[find_layer(classifier.layers, jobs[number].layer).name] for number in numbers]
        profiles.update(zip(numbers, profile_forward(classifier, groups, size), strict=True))
    return [profiles[number] for number in range(len(jobs))]


def _checked_batch_size(classifier: Classifier, job: Job, profile: ForwardProfile) -> int:
    """Return the size of the job's micro-batches; raise a `UserError` if it cannot be done."""
    parameterization = Parameterization(recipe=job.recipe, channels=classifier.in_channels)
    ((layer, shape),) = profile.shapes.items()
    available = shape[0] if job.directions is None else len(job.directions)
    check_channels(job.channels, job.start, layer, available, parameterization)
    return micro_batch_size(profile, job.recipe, device_of(classifier), len(job.channels))


def _batches(number: int, job: Job, profile: ForwardProfile, count: int, *, finished: Container[int]) -> list[_Batch]:
    left = [index for index in range(len(job.channels)) if index not in finished]
    batches = []
    compares = job.recipe.compares_samples
    for batch in split_channels([job.channels[index] for index in left], count, by_channel=compares):
        size = len(batch) if compares else count
        work = profile.work * size * job.recipe.steps
        batches.append(_Batch(job=number, indices=tuple(left[i] for i in batch), count=size, work=work))
    return batches


def _cache_of(
    classifier: Classifier, job: Job, profile: ForwardProfile, count: int, folder: Path | None
) -> PictureCache | None:
    if folder is None or job.start is not None:
        return None
    statistics = () if job.statistics is None else vars(job.statistics).values()
    tensors = [value for value in (*statistics, job.directions) if isinstance(value, Tensor)]
    return PictureCache.of(classifier, profile, folder, job.layer, job.recipe, (job.seed, count), tensors)


def _finished(job: Job, cache: PictureCache | None) -> dict[int, SynthesisResult]:
    """Return the cached pictures by index; of samples that are compared, all of a channel or none."""
    if cache is None:
        return {}
    samples = sample_numbers(job.channels)
    cached = {index: cache.find(job.channels[index], samples[index]) for index in range(len(samples))}
    missing = {job.channels[index] for index, result in cached.items() if result is None}
    return {
        index: result
        for index, result in cached.items()
        if result is not None and not (job.recipe.compares_samples and job.channels[index] in missing)
    }


def _step_counter(progress: Progress | None, job: Job, before: float, share: float) -> Callable[[int], None]:
    if progress is None:
        return lambda _step: None
    return lambda step: progress(job.layer, before + share * step / job.recipe.steps)
