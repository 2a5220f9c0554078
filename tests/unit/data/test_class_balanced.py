"""Class-balanced batches: what each holds, over ranks, epochs and resumed epochs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gsdist.data import ClassBalancedBatches
from gsdist.errors import ConfigError

LABELS = torch.arange(240) % 12


def _batches(rank=0, *, world_size=1, batch_size=8, images_per_class=2, seed=0, epoch=0, first=0):
    sampler = ClassBalancedBatches(
        LABELS,
        images_per_class=images_per_class,
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
        seed=seed,
    )
    sampler.epoch, sampler.first_batch = epoch, first
    batches = list(sampler)
    assert len(batches) == len(sampler) == sampler.batches_per_epoch - first
    return batches


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 4), st.integers(1, 12), st.integers(1, 4), st.integers(0, 10**6))
def test_batches_hold_as_many_images_of_each_class_and_ranks_share_none(
    images_per_class, classes, world_size, seed
):
    ranks = [
        _batches(
            rank,
            world_size=world_size,
            batch_size=classes * images_per_class,
            images_per_class=images_per_class,
            seed=seed,
        )
        for rank in range(world_size)
    ]
    for batches in zip(*ranks, strict=True):
        for batch in batches:
            counts = torch.bincount(LABELS[batch])
            assert sorted(counts[counts > 0].tolist()) == [images_per_class] * classes
        together = [index for batch in batches for index in batch]
        assert len(set(together)) == len(together)


def test_epochs_and_seeds_differ_and_repeat():
    assert _batches() == _batches()
    assert _batches() != _batches(epoch=1)
    assert _batches() != _batches(seed=1)


def test_an_epoch_can_begin_anywhere():
    assert _batches(epoch=3, first=7) == _batches(epoch=3)[7:]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 9}, "batch_size=9 must be a multiple of images_per_class=2"),
        ({"batch_size": 26}, "takes 13 classes of at least 2 images and the data has 12"),
        ({"world_size": 11}, "takes 4 classes of at least 22 images and the data has 0"),
    ],
)
def test_impossible_batches_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        _batches(**options)
