"""The planner's arithmetic by hand, and what must hold whatever the figures."""

import json
import math
import time
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gsdist.collectives import LocalGroup, probe_link, run_together
from gsdist.collectives.cost_model import COST_FUNCTIONS, Link
from gsdist.errors import ConfigError
from gsdist.planner import (
    BASELINE,
    CANDIDATES,
    Candidate,
    Measured,
    Plan,
    Situation,
    break_even_bandwidth,
    choose,
    make_plan,
    measure_alone,
    measure_in_group,
    predict,
    step_factor,
    transformer_shapes,
)
from gsdist.planner.measure import sample
from gsdist.planner.prediction import SKEW
from gsdist.planner.step_factors import read_table
from gsdist.planner.trial import typical
from gsdist.reducers import DenseConfig, TopKConfig, lay_out

D = 1_000_000
SHAPES = {"weight": (1000, 1000)}
PARAMETERS = {"weight": torch.nn.Parameter(torch.empty(1000, 1000, device="meta"))}
DENSE = Candidate(name="dense", config=DenseConfig(), measured_as="dense")
TOP_K = Candidate(name="top-k", config=TopKConfig(density=0.01), measured_as="proposals")
TABLE: dict[str, Any] = {
    "rows": [
        {"method": "one", "workers": 4, "compression": 10.0, "factor": 1.0},
        {"method": "one", "workers": 4, "compression": 1000.0, "factor": 4.0},
        {"method": "one", "workers": 64, "compression": 10.0, "factor": 2.0},
    ]
}


def computing(seconds: float) -> Measured:
    return Measured(local_seconds=seconds)


def situation(mbit: float, *, ranks: int = 4, compute: float = 0.0) -> Situation:
    link = Link(latency=1e-3, bandwidth=125e3 * mbit)
    return Situation(ranks=ranks, link=link, compute_seconds=compute)


def test_a_dense_step_by_hand() -> None:
    """A ring of 4: six messages of 1 ms and 6 MB at 12.5 MB/s; two thirds of computing hide as much."""
    layout = lay_out(DENSE.config, PARAMETERS)
    assert predict(DENSE, layout, computing(0.0), situation(100)).step_seconds == pytest.approx(
        0.486
    )
    slow = predict(DENSE, layout, computing(0.1), situation(100, compute=0.3))
    assert slow.step_seconds == pytest.approx(0.3 + 0.486 + SKEW * 0.1 - 0.2)
    assert predict(DENSE, layout, computing(0.0), situation(100, compute=9.0)).step_seconds == 9.0


def test_a_compressed_step_by_hand() -> None:
    """Six messages for 33 agreement words along a ring, three of 80 kB from neighbour to neighbour."""
    layout = lay_out(TOP_K.config, PARAMETERS)
    got = predict(TOP_K, layout, computing(0.02), situation(100, compute=0.3))
    sent = 1.5 * 4 * 33 + 3 * 8 * 10_000
    assert got.cost.bytes == pytest.approx(sent)
    assert got.compression == pytest.approx(6e6 / sent)
    assert got.step_seconds == pytest.approx(0.3 + 9e-3 + sent / 12.5e6 + SKEW * 0.02)


def test_what_was_measured_on_all_workers_replaces_latency_and_skew() -> None:
    """Agreement words along a ring take 5 ms, neighbours' entries 1 ms beside 240 kB at 12.5 MB/s."""
    layout = lay_out(TOP_K.config, PARAMETERS)
    overhead = {"ring_all_reduce": [(128, 5e-3)], "ring_all_gather": [(128, 1e-3)]}
    there = Situation(
        ranks=4,
        link=Link(latency=1.0, bandwidth=12.5e6, overhead=overhead),
        compute_seconds=0.3,
        skew=1.0,
    )
    got = predict(TOP_K, layout, computing(0.02), there)
    assert got.step_seconds == pytest.approx(0.3 + 6e-3 + got.cost.bytes / 12.5e6 + 0.02)


@pytest.mark.parametrize(
    ("compression", "workers", "factor", "measured"),
    [
        (10, 4, 1.0, True),
        (100, 4, 2.0, True),  # half way between 10 and 1000, on both logarithmic axes
        (10_000, 4, 8.0, False),
        (1, 4, 1.0, True),
        (10, 100, 2.0, False),
        (math.sqrt(10), 64, math.sqrt(2), True),
        (10, 2, 1.0, False),
    ],
)
def test_step_factors_between_and_beyond_what_was_measured(
    compression: float, workers: int, factor: float, measured: bool
) -> None:
    found = step_factor("one", compression, workers, TABLE)
    assert found is not None
    assert found.factor == pytest.approx(factor) and found.measured == measured


def test_the_shipped_table_names_its_sources_and_no_method_without_runs() -> None:
    table = read_table()
    assert all(
        {"file", "commit", "date", "workload", "steps"} <= set(one) for one in table["sources"]
    )
    assert all(row["factor"] >= 1 and row["compression"] >= 1 for row in table["rows"])
    assert step_factor("random-k", 100.0, 4) is None
    assert step_factor("gs-sgd", 30.0, 4) is not None


@given(
    local=st.floats(0, 2),
    mbit=st.floats(1, 1e5),
    ranks=st.integers(2, 300),
    compute=st.floats(0, 3),
)
def test_below_break_even_a_method_is_ahead_and_above_it_is_not(
    local: float, mbit: float, ranks: int, compute: float
) -> None:
    layout = lay_out(TOP_K.config, PARAMETERS)
    times = {"dense": computing(0.0), "top-k": computing(local)}

    def ahead(bandwidth: float) -> bool:
        there = Situation(
            ranks=ranks,
            link=Link(latency=1e-3, bandwidth=bandwidth),
            compute_seconds=compute,
        )
        mine = predict(TOP_K, layout, times["top-k"], there).quality_seconds
        return (
            mine is not None and mine < predict(DENSE, layout, computing(0.0), there).step_seconds
        )

    found = break_even_bandwidth(
        TOP_K, DENSE, layout, times, situation(mbit, ranks=ranks, compute=compute)
    )
    if found is None:
        assert not ahead(1e3)
    elif found == math.inf:
        assert ahead(1e13)
    else:
        assert ahead(found / 1.01) and not ahead(found * 1.01)


def plan_at(mbit: float, *, compute: float = 0.0, local: float = 0.001) -> Plan:
    return make_plan(
        SHAPES,
        dict.fromkeys(CANDIDATES, computing(local)),
        situation(mbit, compute=compute),
    )


def test_dense_is_chosen_where_it_costs_nothing_and_compression_where_links_are_slow() -> None:
    assert plan_at(100_000).chosen.candidate.is_dense
    assert plan_at(
        100, compute=10.0
    ).chosen.candidate.is_dense  # all hidden behind the backward pass
    assert plan_at(100, local=10.0).chosen.candidate.is_dense
    assert not plan_at(10).chosen.candidate.is_dense


@given(st.floats(1, 1e5), st.floats(0, 1), st.floats(0, 1))
def test_the_choice_was_measured_is_offered_and_is_ahead_of_dense_by_a_margin(
    mbit: float, compute: float, local: float
) -> None:
    plan = plan_at(mbit, compute=compute, local=local)
    chosen = plan.chosen
    assert chosen.candidate.offered and chosen.quality_seconds is not None
    dense = min(p.step_seconds for p in plan.predictions if p.candidate.is_dense)
    if chosen.candidate.is_dense:
        assert chosen.step_seconds == dense
    else:
        assert chosen.quality_seconds <= 0.8 * dense
    json.dumps(plan.to_mapping(), allow_nan=False)


def test_random_k_is_never_chosen_unasked() -> None:
    assert choose(plan_at(1).predictions).name != "random-k"
    assert "random-k" in {one.name for one in plan_at(1).predictions}


def test_methods_that_cannot_serve_a_model_are_named() -> None:
    shapes = {"weight": (40, 50)}
    measured = measure_alone(CANDIDATES.values(), shapes)
    assert {"dense", BASELINE} <= set(measured) and "gs-sgd-30x" not in measured
    plan = make_plan(shapes, measured, situation(100))
    assert "gs-sgd-30x" in plan.unfit and plan.chosen.candidate.is_dense


def test_a_part_of_a_model_holds_every_size_in_proportion() -> None:
    matrices = {f"matrix{i}": (100, 100) for i in range(100)}
    vectors = {f"vector{i}": (100,) for i in range(1000)}
    tenth = Counter(tuple(p.shape) for p in sample(matrices | vectors, 110_000).values())
    assert tenth == {(100, 100): 10, (100,): 100}
    assert sample(matrices, 10**6).keys() == matrices.keys()
    assert [tuple(p.shape) for p in sample({"weight": (1000, 300)}, 30_000).values()] == [
        (100, 300)
    ]


@given(
    st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=3), min_size=1, max_size=20),
    st.integers(1, 10**5),
)
def test_a_part_of_a_model_is_about_as_large_as_asked(sides: list[list[int]], most: int) -> None:
    shapes = {str(i): tuple(each) for i, each in enumerate(sides)}
    total = sum(math.prod(each) for each in sides)
    part = sample(shapes, most)
    size = sum(parameter.numel() for parameter in part.values())
    row = max(math.prod(each[1:]) for each in sides)
    assert 0 < size <= max(2 * most, row)
    if most >= total:
        assert {name: tuple(parameter.shape) for name, parameter in part.items()} == shapes


def test_computing_is_measured_by_name() -> None:
    measured = measure_alone([DENSE, CANDIDATES["gs-sgd-30x"]], {"weight": (200, 100)})
    assert set(measured) == {"dense", "gs-sgd-30x"}
    assert all(one.local_seconds > 0 for one in measured.values())


def test_a_typical_step_counts_every_kind_by_its_share_without_the_extremes() -> None:
    often = [(1, seconds) for seconds in (9.0, 1.0, 2.0, 3.0, 0.0)]
    seldom = [(2, seconds) for seconds in (10.0, 50.0, 0.0)]
    unknown = [(7, 1000.0)]
    assert typical({1: 3, 2: 1}, often + seldom + unknown) == (3 * 2.0 + 10.0) / 4
    many = [(1, float(seconds)) for seconds in range(20)]
    assert typical({1: 1}, [*many, (1, 1e9)]) == pytest.approx(10.0)


class DelayedGroup(LocalGroup):
    """Let every sum take 20 ms, of which a cost model knows nothing."""

    def allreduce(self, *arguments: Any) -> Any:
        time.sleep(0.02)
        return super().allreduce(*arguments)


@pytest.mark.parametrize("quick", [True, False])
def test_exchanges_that_should_be_quick_are_tried_and_show_what_the_model_misses(
    quick: bool,
) -> None:
    link = Link(latency=0.0, bandwidth=1e12 if quick else 1.0)

    def measured(group: LocalGroup) -> dict[str, Measured]:
        candidates = [DENSE, CANDIDATES["gs-sgd-30x"]]
        return measure_in_group(candidates, {"weight": (200, 100)}, link, group)

    first, *others = run_together(DelayedGroup.create(3, timeout=60), measured)
    assert others == [first, first]
    assert min(one.local_seconds for one in first.values()) > 0
    if quick:  # gs-SGD sums twice in one step of ten
        whole = {n: one.local_seconds + one.unmodelled_seconds for n, one in first.items()}
        assert whole["dense"] > 0.0199 and whole["gs-sgd-30x"] > 0.0219
        assert first["gs-sgd-30x"].unmodelled_seconds > 0.016
    else:
        assert all(one.unmodelled_seconds == 0.0 for one in first.values())


def test_what_the_model_misses_is_added_once() -> None:
    layout = lay_out(DENSE.config, PARAMETERS)
    measured = Measured(local_seconds=0.1, unmodelled_seconds=0.03)
    got = predict(DENSE, layout, measured, situation(100))
    assert got.step_seconds == pytest.approx(0.486 + SKEW * 0.1 + 0.03)


@given(st.floats(1e5, 1e12))
def test_made_up_transformers_have_nearly_as_many_parameters_as_asked(parameters: float) -> None:
    shapes = transformer_shapes(parameters)
    total = sum(torch.Size(shape).numel() for shape in shapes.values())
    assert total == pytest.approx(parameters, rel=0.1)


def test_too_small_a_transformer_is_refused() -> None:
    with pytest.raises(ConfigError, match="params"):
        transformer_shapes(1e4)


def test_the_probe_agrees_on_all_ranks_and_needs_two() -> None:
    links = run_together(LocalGroup.create(3, timeout=60), probe_link)
    assert links[0] == links[1] == links[2]
    assert links[0].latency > 0 and links[0].bandwidth > 0
    assert set(links[0].overhead) == set(COST_FUNCTIONS)
    for points in links[0].overhead.values():
        sizes = [size for size, _ in points]
        assert len(sizes) >= 3 and sizes == sorted(set(sizes))
    with pytest.raises(ConfigError, match="one worker"):
        run_together(LocalGroup.create(1, timeout=60), probe_link)
