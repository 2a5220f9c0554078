"""The cost model against hand-counted messages and the published example."""

import pytest

from gsdist.collectives.cost_model import COST_FUNCTIONS, Link, Transfer, cost_of, seconds_of

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


@pytest.mark.parametrize(
    ("size", "milliseconds"),
    [(50, 3.0), (100, 3.0), (200, 3.5), (300, 4.0), (1e6, 4.0)],
)
def test_measured_overheads_are_interpolated_and_kept_beyond_the_last(
    size: float, milliseconds: float
) -> None:
    link = Link(
        latency=9.0, bandwidth=1e6, overhead={"tree_all_reduce": [(100, 3e-3), (300, 4e-3)]}
    )
    measured = Transfer(kind="tree_all_reduce", size=size)
    on_the_wire = 4 * size / 1e6
    assert seconds_of([measured], 4, link) == pytest.approx(1e-3 * milliseconds + on_the_wire)
    # two of three messages in a ring of three ranks, of a kind that was not measured
    other = Transfer(kind="ring_all_gather", size=0)
    assert seconds_of([measured, other], 3, link) == pytest.approx(
        1e-3 * milliseconds + on_the_wire + 2 * 9.0
    )


def test_a_burst_may_save_all_the_time_on_the_wire_and_no_more() -> None:
    link = Link(latency=0.0, bandwidth=1e3, overhead={"gather": [(100, -1.0)]})
    transfer = Transfer(kind="gather", size=100)
    assert seconds_of([transfer], 2, link) == 0.0
    assert seconds_of([transfer], 21, link) == pytest.approx(20 * 100 / 1e3 - 1.0)
    assert seconds_of([transfer], 1, link) == 0.0


def test_without_measured_overheads_seconds_are_those_of_the_summed_cost() -> None:
    link = Link(latency=0.01, bandwidth=1e6)
    transfers = tuple(Transfer(kind=kind, size=1000.0) for kind in COST_FUNCTIONS)
    assert seconds_of(transfers, 5, link) == pytest.approx(cost_of(transfers, 5).seconds(link))
