"""The cost model against hand-counted messages and the published example."""

import pytest

from gsdist.collectives.cost_model import COST_FUNCTIONS, Link, Transfer, cost_of

# Spec example: ResNet-50, density 0.1 %, 8 workers, 1 Gb/s; bandwidth terms only, in milliseconds.
D, K, GIGABIT = 25.6e6, 25.6e3, Link(latency=0.0, bandwidth=125e6)


@pytest.mark.parametrize(
    ("transfers", "milliseconds"),
    [
        ((Transfer(kind="ring_all_reduce", size=4 * D),), 1434),
        ((Transfer(kind="ring_all_reduce", size=2 * D),), 717),
        ((Transfer(kind="ring_all_gather", size=8 * K),), 11.5),
        ((Transfer(kind="tree_reduce", size=8 * K), Transfer(kind="tree_broadcast", size=8 * K)), 9.8),
        # gs-SGD, table of 10 k floats and 4 k exact values, ring and tree
        ((Transfer(kind="ring_all_reduce", size=40 * K), Transfer(kind="ring_all_reduce", size=16 * K)), 20),
        ((Transfer(kind="tree_all_reduce", size=40 * K), Transfer(kind="tree_all_reduce", size=16 * K)), 69),
    ],
)  # fmt: skip
def test_published_example(transfers: tuple[Transfer, ...], milliseconds: float) -> None:
    assert cost_of(transfers, 8).seconds(GIGABIT) * 1e3 == pytest.approx(milliseconds, rel=0.02)


@pytest.mark.parametrize(
    ("kind", "messages"),
    [
        ("ring_all_reduce", {2: 2, 5: 8, 8: 14}),
        ("tree_all_reduce", {2: 2, 5: 6, 8: 6}),
        ("ring_all_gather", {2: 1, 5: 4, 8: 7}),
        ("tree_broadcast", {2: 1, 5: 3, 8: 3}),
    ],
)
def test_messages_in_sequence(kind: str, messages: dict[int, int]) -> None:
    assert {p: COST_FUNCTIONS[kind](100.0, p).messages for p in messages} == messages


def test_one_rank_sends_nothing() -> None:
    assert cost_of((Transfer(kind="ring_all_reduce", size=100),), 1).bytes == 0


def test_latency_counts_per_message() -> None:
    cost = COST_FUNCTIONS["tree_all_reduce"](1000.0, 4)
    assert cost.seconds(Link(latency=0.01, bandwidth=1e6)) == pytest.approx(
        4 * 0.01 + 4 * 1000 / 1e6
    )
