import pytest
import torch

from filterscope.data.splits import hashed_numbers, seeded_split, spread_over_classes
from filterscope.errors import UserError

NAMES = ("ant", "bee", "cat")
LABELS = torch.tensor([0] * 40 + [1] * 20 + [2] * 7)


def split(labels=LABELS, fractions=(0.15, 0.15), names=NAMES, seed=0, keys=None):
    keys = [f"{index}.jpg" for index in range(len(labels))] if keys is None else keys
    return seeded_split(labels, hashed_numbers(keys, seed=seed), fractions, class_names=names)


def test_parts_are_disjoint_and_complete():
    parts = split()
    assert sorted(torch.cat(parts).tolist()) == list(range(len(LABELS)))


def test_every_part_has_an_image_of_every_class_and_its_share_on_average():
    counts = [torch.bincount(LABELS[part], minlength=3).tolist() for part in split()]
    assert all(count > 0 for part in counts for count in part)
    _, val, test = map(len, split(torch.tensor([0] * 20_000), names=("ant",)))
    assert abs(val - 3000) < 200
    assert abs(test - 3000) < 200


def test_added_images_move_no_trained_image_and_removed_ones_none_at_all():
    keys = [f"{index}.jpg" for index in range(400)]
    parts = split(torch.zeros(300, dtype=torch.int64), names=("ant",), keys=keys[:300])
    before = {key: part for part, members in enumerate(parts) for key in (keys[i] for i in members.tolist())}
    shuffled = [keys[i] for i in torch.randperm(400, generator=torch.Generator().manual_seed(0)).tolist()]
    parts = split(torch.zeros(400, dtype=torch.int64), names=("ant",), keys=shuffled)
    after = {key: part for part, members in enumerate(parts) for key in (shuffled[i] for i in members.tolist())}
    assert all(after[key] == part for key, part in before.items())


def test_the_same_seed_splits_the_same_way_and_another_does_not():
    assert all(torch.equal(a, b) for a, b in zip(split(), split(), strict=True))
    assert not torch.equal(split()[1], split(seed=1)[1])


def test_leaving_a_class_out_moves_no_image_of_another():
    remaining = LABELS != 0
    without = split(LABELS[remaining] - 1, names=NAMES[1:], keys=[f"{i}.jpg" for i in remaining.nonzero().flatten()])
    indices = remaining.nonzero().flatten()
    for whole, part in zip(split(), without, strict=True):
        assert torch.equal(whole[LABELS[whole] != 0], indices[part])


def test_three_images_are_enough_for_three_parts():
    assert [len(part) for part in split(torch.tensor([0, 0, 0]), names=("ant",))] == [1, 1, 1]


def test_a_class_too_small_to_split_names_the_option():
    with pytest.raises(UserError, match=r"'ant' has 2 images.*data\.exclude=\[ant\]"):
        split(torch.tensor([0, 0]), names=("ant",))


def test_a_fraction_of_zero_takes_nothing():
    train, val, test = split(fractions=(0.2, 0.0))
    assert (len(test), len(train) + len(val)) == (0, len(LABELS))


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (-0.1, 0.1)])
def test_impossible_fractions_are_refused(fractions):
    with pytest.raises(UserError, match="fractions"):
        split(fractions=fractions)


def test_examples_contain_every_class_once_before_any_twice():
    assert LABELS[spread_over_classes(LABELS, 3, seed=0)].tolist() == [0, 1, 2]
    assert LABELS[spread_over_classes(LABELS, 5, seed=0)].bincount().sort().values.tolist() == [1, 2, 2]
    assert len(set(spread_over_classes(LABELS, 5, seed=0).tolist())) == 5


def test_fewer_examples_than_classes_are_of_different_classes():
    chosen = {tuple(LABELS[spread_over_classes(LABELS, 2, seed=seed)].tolist()) for seed in range(30)}
    assert chosen == {(0, 1), (0, 2), (1, 2)}


def test_more_examples_than_images_are_all_images():
    assert sorted(spread_over_classes(LABELS, 1000, seed=0).tolist()) == list(range(len(LABELS)))
