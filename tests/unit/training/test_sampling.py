"""How data is dealt out: disjoint, complete, and the same from any position on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsdist.errors import ConfigError
from gsdist.training.sampling import EvaluationShard, TrainingBatches


def batches(
    rank: int, *, examples: int, batch_size: int, world_size: int, epoch: int, first: int = 0
) -> list[list[int]]:
    sampler = TrainingBatches(
        examples, batch_size=batch_size, rank=rank, world_size=world_size, seed=5
    )
    sampler.epoch, sampler.first_batch = epoch, first
    dealt = list(sampler)
    assert len(dealt) == len(sampler)
    return dealt


@given(
    world_size=st.integers(1, 5),
    batch_size=st.integers(1, 7),
    spare=st.integers(0, 40),
    epoch=st.integers(0, 3),
    data=st.data(),
)
def test_batches_are_disjoint_and_continue_from_any_position(
    world_size: int, batch_size: int, spare: int, epoch: int, data: st.DataObject
) -> None:
    examples = world_size * batch_size + spare
    common = {
        "examples": examples,
        "batch_size": batch_size,
        "world_size": world_size,
        "epoch": epoch,
    }
    dealt = [batches(rank, **common) for rank in range(world_size)]
    assert {len(own) for own in dealt} == {examples // (world_size * batch_size)}
    seen = [index for own in dealt for batch in own for index in batch]
    assert len(seen) == len(set(seen)) and set(seen) <= set(range(examples))
    assert all(len(batch) == batch_size for own in dealt for batch in own)
    first = data.draw(st.integers(0, len(dealt[0])))
    assert batches(0, **common, first=first) == dealt[0][first:]


def test_epochs_differ_and_repeat() -> None:
    common = {"examples": 100, "batch_size": 10, "world_size": 2}
    assert batches(0, **common, epoch=0) == batches(0, **common, epoch=0)
    assert batches(0, **common, epoch=0) != batches(0, **common, epoch=1)


def test_too_little_data_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"batch_size=8 on 2 worker.*16.*15"):
        TrainingBatches(15, batch_size=8, rank=0, world_size=2, seed=0)


@given(examples=st.integers(0, 50), world_size=st.integers(1, 6))
def test_every_example_is_evaluated_once(examples: int, world_size: int) -> None:
    shards = [EvaluationShard(examples, rank=r, world_size=world_size) for r in range(world_size)]
    assert sorted(index for shard in shards for index in shard) == list(range(examples))
    assert [len(shard) for shard in shards] == [len(list(shard)) for shard in shards]
