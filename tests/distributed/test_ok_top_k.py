"""Ok-Topk against a selection from whole vectors, and its count of words, for 1 to 5 workers.

Workers are threads here; `test_reducers.py` shows that gloo processes give the same bits.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from gsdist.collectives import LocalGroup, all_to_all, run_together
from gsdist.collectives.cost_model import cost_of
from gsdist.reducers import OkTopKConfig
from tests.distributed.harness import run_ranks
from tests.distributed.reducer_driver import (
    SHAPES,
    SKETCHED,
    exchange,
    flatten,
    integer_gradients,
    make_layout,
    make_reducer,
)

STEPS = 3
CONFIG = OkTopKConfig(density=0.1, warmup_steps=0, min_numel=600)
TOTAL = sum(torch.Size(SHAPES[name]).numel() for name in SKETCHED)
K = round(0.1 * TOTAL)


def gradients(kind: str, step: int, rank: int) -> dict[str, Tensor]:
    if kind == "ties":  # a handful of values, so that the threshold is met by hundreds of sums
        return integer_gradients(10 * step + rank, largest=2)
    drawn = integer_gradients(10 * step + rank)
    if kind == "one place":  # all that is large lies in one parameter, so regions and shares differ
        drawn["third"] *= 1000
    return drawn


KINDS = ("spread", "ties", "one place")


def run(group: LocalGroup) -> dict[str, Any]:
    found, rank, world_size = {}, group.rank(), group.size()
    for kind in KINDS:
        reducer, history = make_reducer(CONFIG, group), []
        for step in range(STEPS):
            averages = exchange(reducer, gradients(kind, step, rank), layout=make_layout(CONFIG))
            statistics = reducer.statistics()
            history.append(
                {
                    "averages": averages,
                    "residual": reducer.state_dict()["residual"],
                    "payload": statistics.payload_bytes_last_step,
                    "busiest": cost_of(statistics.transfers_last_step, world_size),
                }
            )
        found[kind] = history
    return found


@pytest.fixture(scope="module", params=[1, 2, 3, 4, 5])
def results(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return run_together(LocalGroup.create(request.param, timeout=30), run)


def largest(vector: Tensor, count: int) -> Tensor:
    """Choose by a stable sort of all: the largest magnitudes, ties by the lowest index."""
    return vector.abs().sort(descending=True, stable=True).indices[:count]


@pytest.mark.parametrize("kind", KINDS)
def test_applies_the_k_largest_sums_of_the_workers_k_largest(
    results: list[dict[str, Any]], kind: str
) -> None:
    residuals = [torch.zeros(TOTAL) for _ in results]
    for step in range(STEPS):
        offered, chosen = [], []
        for rank, residual in enumerate(residuals):
            corrected = residual + flatten(gradients(kind, step, rank))
            chosen.append(largest(corrected, K))
            offered.append(torch.zeros(TOTAL).index_copy(0, chosen[-1], corrected[chosen[-1]]))
            residuals[rank] = corrected
        sums = torch.stack(offered).sum(0)
        proposed = torch.stack([vector != 0 for vector in offered]).any(0)
        assert proposed.sum() >= K, "every proposal is non-zero, or zeros may be chosen too"
        selected = largest(sums, K)
        expected = torch.zeros(TOTAL).index_copy(0, selected, sums[selected])
        for rank, result in enumerate(results):
            applied = len(results) * flatten(result[kind][step]["averages"])
            torch.testing.assert_close(applied, expected, rtol=1e-6, atol=0)
            sent = chosen[rank][torch.isin(chosen[rank], selected)]
            residuals[rank][sent] = 0
            assert torch.equal(flatten(result[kind][step]["residual"]), residuals[rank])


@pytest.mark.parametrize("kind", KINDS)
def test_all_ranks_hold_the_same_bits(results: list[dict[str, Any]], kind: str) -> None:
    for step in range(STEPS):
        for name in SHAPES:
            expected = results[0][kind][step]["averages"][name]
            assert all(torch.equal(r[kind][step]["averages"][name], expected) for r in results)


@pytest.mark.parametrize("kind", KINDS)
def test_less_than_6k_words_leave_a_worker(results: list[dict[str, Any]], kind: str) -> None:
    """Dense set, boundaries and lanes, and the counts by which workers agree, come on top."""
    world_size = len(results)
    dense = sum(torch.Size(SHAPES[name]).numel() for name in SHAPES if name not in SKETCHED)
    counts = (dense + 33 + world_size) + 2 * (world_size - 1) + 4 * 256 + 4
    for result in results:
        for step in range(STEPS):
            # of the last all-gather the payload holds one share, of which P - 1 are sent on
            share = 2 * -(-K // world_size)
            words = result[kind][step]["payload"] / 4 + (world_size - 2) * share - counts
            assert words < 6 * K


def test_predicted_bytes_do_not_grow_with_workers_beyond_the_counts() -> None:
    """With threads as workers: from 4 to 16 of them the busiest link carries hardly more."""

    def busiest(world_size: int) -> float:
        config = OkTopKConfig(density=0.3, warmup_steps=0, min_numel=600)

        def step(group: LocalGroup) -> float:
            reducer = make_reducer(config, group)
            exchange(reducer, integer_gradients(group.rank()), layout=make_layout(config))
            transfers = reducer.statistics().transfers_last_step
            entries = tuple(t for t in transfers if t.kind in ("all_to_all", "ring_all_gather"))
            return cost_of(entries, world_size).bytes

        return max(run_together(LocalGroup.create(world_size, timeout=30), step))

    words = {world_size: busiest(world_size) / 4 for world_size in (2, 4, 16)}
    k = round(0.3 * TOTAL)
    assert all(count < 6 * k for count in words.values()), words


def unequal_parts(rank: int, world_size: int) -> list[list[int]]:
    # rank r sends r + 2j numbers to rank j, none from rank 0 to itself
    parts = [torch.full((rank + 2 * target,), 10 * rank + target) for target in range(world_size)]
    lengths = [source + 2 * rank for source in range(world_size)]
    received = all_to_all(parts, lengths, None, phase="the test")
    return [part.tolist() for part in received]


@pytest.mark.parametrize("world_size", [1, 3])
def test_all_to_all_delivers_parts_of_unequal_length(world_size: int) -> None:
    for rank, received in enumerate(run_ranks(unequal_parts, world_size)):
        expected = [[10 * source + rank] * (source + 2 * rank) for source in range(world_size)]
        assert received == expected
