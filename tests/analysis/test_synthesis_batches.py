"""Micro-batches: the other pictures in one do not change a picture's bits, its size changes next to nothing."""

import pytest
import torch

from filterscope.analysis.synthesis import synthesize
from filterscope.analysis.synthesis.jobs import micro_batch_size
from filterscope.analysis.synthesis.network import profile_forward
from quick import quick


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_other_pictures_of_a_micro_batch_do_not_change_a_bit(colour, precision):
    recipe = quick(objective="specific", precision=precision)
    together = synthesize(colour, "block2_conv1", [0, 1, 2, 3, 4, 5, 6], recipe=recipe, micro_batch=3)
    for order in ([5, 2, 0], [2], [6, 4, 3, 2]):
        other = synthesize(colour, "block2_conv1", order, recipe=recipe, micro_batch=3)
        assert torch.equal(other.images, together.images[order])
        assert torch.equal(other.curve, together.curve[:, order])
        assert torch.equal(other.responses, together.responses[order])


def test_pictures_are_spread_evenly_over_as_few_micro_batches_as_hold_them(colour):
    (profile,) = profile_forward(colour, [["block2_conv1"]], 64)
    most = micro_batch_size(profile, quick(size=64), torch.device("cpu"), 10_000)
    for pictures in (1, most, most + 1, 3 * most - 1):
        count = micro_batch_size(profile, quick(size=64), torch.device("cpu"), pictures)
        batches = -(-pictures // most)
        assert (batches - 1) * count < pictures <= batches * count <= pictures + batches - 1


def test_another_micro_batch_size_changes_the_activation_by_less_than_two_percent(colour):
    one = synthesize(colour, "block2_conv1", [0, 1, 2, 3], recipe=quick(), micro_batch=1)
    four = synthesize(colour, "block2_conv1", [0, 1, 2, 3], recipe=quick(), micro_batch=4)
    assert torch.allclose(one.activation, four.activation, rtol=0.02)


def test_progress_counts_every_step_of_every_micro_batch(grey):
    told = []
    synthesize(
        grey, "block1_conv1", [0, 1, 2], recipe=quick(steps=2), micro_batch=2, progress=lambda *x: told.append(x)
    )
    assert told == [("block1_conv1", share) for share in (0.25, 0.5, 0.75, 1.0)]
