"""Pictures of many layers: distributed over the ranks of a run, and read from a cache where they are finished."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from filterscope.analysis.hooks import device_of, observing
from filterscope.analysis.synthesis.cache import PictureCache, remove_oldest
from filterscope.analysis.synthesis.jobs import Job, SynthesisResult, merge_results
from filterscope.analysis.synthesis.network import ForwardProfile, frozen_copy, profile_forward
from filterscope.analysis.synthesis.optimize import uses_bf16
from filterscope.analysis.synthesis.recipe import Recipe
from filterscope.analysis.synthesis.renderer import LayerRenderer
from filterscope.models.classifier import Classifier
from filterscope.runtime.processes import world_size

Progress = Callable[[str, float], None]
"""Is called with the name of the current layer and the finished fraction of all work, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """A micro-batch: indices of the pictures of job number `job`; `work` is the number of multiplications."""

    job: int
    indices: Sequence[int]
    work: int


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """All jobs with their forward profiles and caches."""

    jobs: Sequence[Job] = ()
    profiles: Sequence[ForwardProfile] = ()
    caches: Sequence[PictureCache | None] = ()


def synthesize_all(
    classifier: Classifier,
    jobs: Sequence[Job],
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
    alone: bool = False,
) -> list[SynthesisResult]:
    """Make the pictures of several jobs, with the same bits for any number of ranks.

    In a distributed run rank 0 calls this, while every other rank calls `run_synthesis_worker`. Micro-batches are
    distributed by their work, and rank 0 gets all pictures.

    Args:
        classifier: is left exactly as it was; has the same weights on all ranks.
        jobs: the pictures to be made.
        cache: folder of finished pictures. Those in it are not made again, and new ones are added as they are
            finished; all pictures then have 8 bits a channel. Jobs with a start are not cached. It takes at most 2 GB:
            beyond that, the pictures that were not used for longest are removed. None: no cache.
        progress: is called after every step with the progress of this rank.
        alone: make all pictures on this rank; then the others must not call `run_synthesis_worker`.

    Raises:
        UserError: as `LayerRenderer`, before any picture is made.
    """
    with observing(classifier), torch.no_grad():
        profiles = _profiles(classifier, jobs)
        caches: list[PictureCache | None] = []
        batches: list[_Batch] = []
        parts: list[list[tuple[Sequence[int], SynthesisResult]]] = []
        for number, (job, profile) in enumerate(zip(jobs, profiles, strict=True)):
            size = job.batch_size(classifier, profile)
            cached = cache is not None and job.start is None and job.objective is None
            caches.append(PictureCache.of(classifier, job, profile, size, cache) if cache and cached else None)
            finished = _finished(job, caches[-1])
            parts.append([((index,), result) for index, result in finished.items()])
            for indices in job.batches(size, finished):
                pictures = len(indices) if job.recipe.compares_samples else size
                work = round(profile.work * pictures * job.recipe.passes)
                batches.append(_Batch(job=number, indices=indices, work=work))
        plan = _Plan(jobs=jobs, profiles=profiles, caches=caches)
        run = _run if alone else _run_on_all_ranks
        for batch, result in zip(batches, run(classifier, plan, batches, progress), strict=True):
            parts[batch.job].append((batch.indices, result))
    if cache is not None and batches:
        remove_oldest(cache)
    return [merge_results(each) for each in parts]


def synthesize(
    classifier: Classifier,
    layer: str,
    channels: Sequence[int],
    *,
    recipe: Recipe,
    progress: Progress | None = None,
    **options: Any,
) -> SynthesisResult:
    """Make one picture of each of a layer's channels, on this rank alone.

    Args:
        classifier: is left exactly as it was, also after an exception.
        layer: a name as `Classifier.layers` has it.
        channels: one picture each.
        recipe: how to make the pictures.
        progress: see `synthesize_all`.
        **options: further attributes of the `Job`: `seed`, `start`, `statistics`, `objective`, `micro_batch` ….

    Raises:
        UserError: as `LayerRenderer`.
    """
    job = Job(layer=layer, channels=tuple(channels), recipe=recipe, **options)
    return synthesize_all(classifier, [job], progress=progress, alone=True)[0]


def run_synthesis_worker(classifier: Classifier) -> None:
    """Do this rank's share of the work that `synthesize_all` on rank 0 distributes."""
    with observing(classifier), torch.no_grad():
        _run_on_all_ranks(classifier, _Plan(), (), None)


def assign_to_ranks(work: Sequence[int], ranks: int) -> list[int]:
    """Return a rank for each piece of work, largest pieces first, so that all ranks have about the same work."""
    loads = [0] * ranks
    owners = [0] * len(work)
    for piece in sorted(range(len(work)), key=lambda i: (-work[i], i)):
        owners[piece] = loads.index(min(loads))
        loads[owners[piece]] += work[piece]
    return owners


def _run_on_all_ranks(
    classifier: Classifier, plan: _Plan, batches: Sequence[_Batch], progress: Progress | None
) -> list[SynthesisResult]:
    """Return the results of the batches, in their order, on rank 0, whose plan and batches all ranks get."""
    if world_size() == 1:
        return _run(classifier, plan, batches, progress)
    message: list[Any] = [plan, batches]
    dist.broadcast_object_list(message, src=0)
    plan, batches = message
    owners = assign_to_ranks([batch.work for batch in batches], dist.get_world_size())
    own = [batch for batch, owner in zip(batches, owners, strict=True) if owner == dist.get_rank()]
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
    total, done = sum(batch.work for batch in batches), 0
    results = []
    copies: dict[tuple[bool, bool], Classifier] = {}  # by what decides how the copy's modules are prepared
    for number, group in itertools.groupby(batches, key=lambda batch: batch.job):
        job, cache = plan.jobs[number], plan.caches[number]
        kind = job.recipe.normalize, uses_bf16(job.recipe, device_of(classifier))
        if kind not in copies:
            copies[kind] = frozen_copy(classifier)
        renderer = LayerRenderer(classifier, job, profile=plan.profiles[number], copied=copies[kind])
        for batch in group:
            result = renderer.render(batch.indices, _step_counter(progress, job, done / total, batch.work / total))
            results.append(result if cache is None else cache.put([job.pairs[i] for i in batch.indices], result))
            done += batch.work
    return results


def _profiles(classifier: Classifier, jobs: Sequence[Job]) -> list[ForwardProfile]:
    """Return the forward profile of each job, with one forward pass for each size of pictures."""
    profiles: dict[int, ForwardProfile] = {}
    for size in {job.recipe.size for job in jobs}:
        numbers = [number for number, job in enumerate(jobs) if job.recipe.size == size]
        groups = [jobs[number].layers(classifier) for number in numbers]
        profiles.update(zip(numbers, profile_forward(classifier, groups, size), strict=True))
    return [profiles[number] for number in range(len(jobs))]


def _finished(job: Job, cache: PictureCache | None) -> dict[int, SynthesisResult]:
    """Return the cached pictures by index; of samples that are compared, all of a channel or none."""
    if cache is None:
        return {}
    cached = {index: cache.find(*pair) for index, pair in enumerate(job.pairs)}
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
