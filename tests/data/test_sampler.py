import torch

from filterscope.data.sampler import EpochSampler, generator, mix_seed


def keys(length=10, epoch=0, shuffle=True, **options):
    return list(EpochSampler(length, epoch=lambda: epoch, seed=3, shuffle=shuffle, **options))


def test_the_order_follows_from_the_epoch_alone():
    assert keys(epoch=4) == keys(epoch=4)
    assert [index for _, index in keys(epoch=4)] != [index for _, index in keys(epoch=5)]


def test_every_image_is_yielded_once_with_the_epoch():
    assert sorted(keys(epoch=7)) == [(7, index) for index in range(10)]


def test_without_shuffling_images_keep_their_order():
    assert keys(shuffle=False) == [(0, index) for index in range(10)]


def test_shuffled_ranks_get_equally_many_images_and_together_all():
    parts = [keys(rank=rank, world_size=3) for rank in range(3)]
    assert [len(part) for part in parts] == [4, 4, 4]
    assert {index for part in parts for _, index in part} == set(range(10))


def test_unshuffled_ranks_together_get_every_image_exactly_once():
    parts = [keys(shuffle=False, rank=rank, world_size=3) for rank in range(3)]
    assert sorted(index for part in parts for _, index in part) == list(range(10))


def test_the_length_is_the_number_of_yielded_images():
    for shuffle in (True, False):
        for world in (1, 2, 3, 4):
            for rank in range(world):
                sampler = EpochSampler(10, epoch=lambda: 0, seed=0, shuffle=shuffle, rank=rank, world_size=world)
                assert len(sampler) == len(list(sampler))


def test_neighbouring_numbers_give_unrelated_seeds():
    seeds = {mix_seed(seed, epoch, index) for seed in range(4) for epoch in range(20) for index in range(50)}
    assert len(seeds) == 4000
    assert not torch.equal(torch.rand(4, generator=generator(0, 1)), torch.rand(4, generator=generator(1, 0)))
