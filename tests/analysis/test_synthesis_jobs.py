"""Pictures of many layers: work is distributed evenly, and cached pictures are used unless they are stale."""

import copy
import os

import numpy as np
import pytest
import torch

from filterscope.analysis.synthesis import (
    Job,
    Recipe,
    SynthesisResult,
    measure_statistics,
    start_from,
    synthesize,
    synthesize_all,
)
from filterscope.analysis.synthesis.cache import remove_oldest
from filterscope.analysis.synthesis.distributed import assign_to_ranks
from filterscope.errors import UserError
from filterscope.models import heads
from filterscope.models.backbone import small_cnn_backbone

RECIPE = Recipe(size=32, steps=4, precision="fp32", objective="channel")


@pytest.fixture
def network():
    torch.manual_seed(0)
    return heads.replace(small_cnn_backbone(in_channels=1, image_size=32), num_classes=4)


def job(layer="block2_conv1", channels=(0, 1, 2), **more):
    return Job(layer=layer, channels=channels, **{"recipe": RECIPE, **more})


class Steps(list):
    """Counts the steps that were taken."""

    def __call__(self, layer, done):
        self.append((layer, done))


def same(first: SynthesisResult, second: SynthesisResult) -> bool:
    """Return whether all tensors are equal; nan equals nan."""
    return all(torch.equal(v.nan_to_num(9), getattr(second, n).nan_to_num(9)) for n, v in vars(first).items())


def test_jobs_give_the_results_of_single_calls(network):
    jobs = [job("block1_conv1"), job(), job("head", (3,), seed=5)]
    for each, made in zip(jobs, synthesize_all(network, jobs), strict=True):
        alone = synthesize(network, each.layer, each.channels, recipe=RECIPE, seed=each.seed)
        assert all(
            torch.equal(value.nan_to_num(9), getattr(alone, name).nan_to_num(9)) for name, value in vars(made).items()
        )


def test_progress_rises_to_one_over_all_layers(network):
    told = Steps()
    synthesize_all(network, [job("block1_conv1"), job()], progress=told)
    shares = [done for _, done in told]
    assert [layer for layer, _ in told] == ["block1_conv1"] * 4 + ["block2_conv1"] * 4
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    assert shares[3] < 0.5  # the second layer is the larger work


def test_work_is_distributed_evenly_and_completely():
    work = [5, 9, 1, 1, 7, 3, 3, 1]
    owners = assign_to_ranks(work, 3)
    loads = [sum(w for w, owner in zip(work, owners, strict=True) if owner == rank) for rank in range(3)]
    assert sum(loads) == sum(work)
    assert max(loads) - min(loads) <= 1
    assert assign_to_ranks(work, 1) == [0] * len(work)


def test_a_cached_picture_is_not_made_again(network, tmp_path):
    first = synthesize_all(network, [job()], cache=tmp_path)[0]
    told = Steps()
    again = synthesize_all(network, [job()], cache=tmp_path, progress=told)[0]
    assert told == []
    assert all(
        torch.equal(value.nan_to_num(9), getattr(again, name).nan_to_num(9)) for name, value in vars(first).items()
    )
    fresh = synthesize_all(network, [job()])[0]
    assert (first.images - fresh.images).abs().max() <= 0.5 / 255 + 1e-6
    assert torch.equal(first.activation, fresh.activation)


def test_an_interrupted_layer_continues_where_it_stopped(network, tmp_path):
    recipe = Recipe(size=32, steps=4, precision="fp32", objective="channel", memory=0.0005)  # a few at a time
    whole = synthesize_all(network, [job(channels=tuple(range(12)), recipe=recipe)], cache=tmp_path / "whole")[0]

    def stop(_layer, done):
        if done > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesize_all(network, [job(channels=tuple(range(12)), recipe=recipe)], cache=tmp_path / "part", progress=stop)
    done = len(list((tmp_path / "part").glob("*.npz")))
    assert 0 < done < 12
    told = Steps()
    rest = synthesize_all(
        network, [job(channels=tuple(range(12)), recipe=recipe)], cache=tmp_path / "part", progress=told
    )[0]
    assert torch.equal(rest.images, whole.images)
    assert torch.equal(rest.curve, whole.curve)
    assert len(list((tmp_path / "part").glob("*.npz"))) == 12


@pytest.mark.parametrize("change", ["weights", "recipe", "seed", "statistics", "channel"])
def test_a_stale_picture_is_never_read(network, tmp_path, change):
    synthesize_all(network, [job(channels=(0, 1))], cache=tmp_path)
    other = job(channels=(0, 1))
    if change == "weights":
        network = copy.deepcopy(network)
        with torch.no_grad():
            network.module_of("block1_conv1").bias[0] += 1e-6
    elif change == "recipe":
        other = job(channels=(0, 1), recipe=Recipe(size=32, steps=4, precision="fp32", objective="channel", jitter=7.0))
    elif change == "seed":
        other = job(channels=(0, 1), seed=1)
    elif change == "statistics":
        known = measure_statistics(network, torch.rand(3, 1, 32, 32), ["block2_conv1"])
        other = job(channels=(0, 1), statistics=known)
    else:
        other = job(channels=(2, 3))
    told = Steps()
    synthesize_all(network, [other], cache=tmp_path, progress=told)
    assert told


def test_weights_behind_the_layer_do_not_make_a_picture_stale(network, tmp_path):
    synthesize_all(network, [job("block1_conv1")], cache=tmp_path)
    with torch.no_grad():
        network.head.weight.add_(1.0)
    told = Steps()
    synthesize_all(network, [job("block1_conv1")], cache=tmp_path, progress=told)
    assert told == []


CHANGES = (
    {"image": np.zeros((1, 3, 9, 9), np.uint8)},
    {"image": np.zeros((1, 0, 32, 32), np.uint8)},
    {"curve": np.array(["x"])},
    {"rank": np.zeros(3)},
)


def test_a_picture_whose_file_is_damaged_is_made_again(network, tmp_path):
    six = job(channels=range(6))
    first = synthesize_all(network, [six], cache=tmp_path)[0]
    files = sorted(tmp_path.glob("*.npz"))
    files[0].write_bytes(files[0].read_bytes()[:100])
    files[1].write_bytes(b"")
    with np.load(files[2]) as stored:
        content = dict(stored)
    for file, change in zip(files[2:], CHANGES, strict=True):
        np.savez(file, **(content | change))
    again = synthesize_all(network, [six], cache=tmp_path)[0]
    assert torch.equal(again.images, first.images)


def test_compared_samples_are_cached_together_or_not_at_all(network, tmp_path):
    recipe = Recipe(size=32, steps=4, precision="fp32", objective={"channel": 1.0, "diversity": 1.0})
    samples = job(channels=(1, 1, 2, 2), recipe=recipe)
    first = synthesize_all(network, [samples], cache=tmp_path)[0]
    next(tmp_path.glob("*_1_0_*.npz")).unlink()
    told = Steps()
    again = synthesize_all(network, [samples], cache=tmp_path, progress=told)[0]
    assert len(told) == 4
    assert torch.equal(again.images, first.images)


def test_pictures_with_a_start_are_not_cached(network, tmp_path):
    start = start_from(torch.rand(3, 1, 32, 32), RECIPE)
    synthesize_all(network, [job(start=start)], cache=tmp_path)
    assert not list(tmp_path.iterdir())


def test_mistakes_are_reported_before_any_picture_is_made(network):
    told = Steps()
    with pytest.raises(UserError, match="channel 99 of block2_conv1 does not exist"):
        synthesize_all(network, [job(), job(channels=(99,))], progress=told)
    assert told == []


def test_a_cache_that_is_too_large_loses_the_pictures_that_were_not_used_for_longest(tmp_path):
    names = [f"alexnet_block1_conv1_{number}_0_{'0' * 32}.npz" for number in range(4)]
    for age, name in enumerate(names):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (1000 + age, 1000 + age))
    (tmp_path / "my_own.npz").write_bytes(bytes(1000))
    os.utime(tmp_path / names[0], (2000, 2000))
    remove_oldest(tmp_path, max_bytes=250)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([names[0], names[3], "my_own.npz"])
