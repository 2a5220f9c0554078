"""How the planner is judged and fed: step factors from curves, errors and choices from cells, crossings."""

import math
from typing import Any

import numpy as np
import pytest

from benchmarks.bootstrap import interval_of_ratio
from benchmarks.plan import difference_of_halves, judge_choices, predict_cells, within
from benchmarks.step_factors import equivalent_dense_step, factors_of, make_table
from benchmarks.what_if import crossings

DENSE_CURVE = [10.0 - 0.02 * step for step in range(400)]


def row(method: str, losses: list[float], **changes: Any) -> dict[str, Any]:
    base = {"workers": 4, "seed": 0, "budget": 30.0, "wire_compression": 29.0}
    return {"method": method, "curves": {"loss": losses}, **base, **changes}


def test_the_dense_step_with_the_same_loss() -> None:
    """A mean of 40 falling losses lags: the mean over steps 60 to 99 is the loss at step 79.5."""
    assert equivalent_dense_step(DENSE_CURVE, 10.0 - 0.02 * 79.5 + 1e-9) == 100
    assert equivalent_dense_step(DENSE_CURVE, -5.0) == 400
    assert equivalent_dense_step(DENSE_CURVE, 99.0) == 40


def test_a_method_that_is_half_as_fast_has_factor_two() -> None:
    slow = [10.0 - 0.01 * step for step in range(400)]
    result = {
        "rows": [
            row("dense", DENSE_CURVE),
            row("slow", slow),
            row("better", [loss - 1 for loss in DENSE_CURVE]),
            row("oracle", slow),
            row("gs-sgd:max_directions=16", slow),
            row("alone", slow, workers=64),
        ]
    }
    factors = {one["method"]: one["factor"] for one in factors_of(result)}
    assert set(factors) == {"slow", "better"}
    # its mean over the last 40 steps is dense's around step 190, found 20 steps later
    assert factors["slow"] == pytest.approx(400 / 210, rel=0.01)
    assert factors["better"] == 1.0


def test_the_table_averages_seeds_and_names_its_sources() -> None:
    def result(factor_like: float) -> dict[str, Any]:
        method = [10.0 - 0.02 / factor_like * step for step in range(400)]
        environment = {"commit": "c", "date": "d", "cpu": "p", "torch": "t"}
        training = {"workload": "net", "steps": 400, "global_batch": 8, "momentum": 0.9}
        rows = [row("dense", DENSE_CURVE), row("one", method)]
        return {"environment": environment, "training": training, "rows": rows}

    first, second = (make_table([("a", result(f))])["rows"][0]["factor"] for f in (1.5, 3.0))
    table = make_table([("a.json", result(1.5)), ("b.json", result(3.0))])
    assert [source["file"] for source in table["sources"]] == ["a.json", "b.json"]
    (merged,) = table["rows"]
    assert merged["factor"] == pytest.approx(math.sqrt(first * second), rel=1e-3)
    assert (merged["runs"], merged["compression"], merged["workers"]) == (2, 29.0, 4)


def exchange_result(milliseconds: dict[str, float]) -> dict[str, Any]:
    """Make a result of two workers at 100 Mb/s; messages take 1 ms, nothing computes."""
    link = {"latency": 1e-3, "bandwidth": 12.5e6}
    cells = [
        {"method": method, "model": "resnet20", "d": 272_474, "density": 0.004, "ranks": 2}
        | {"rate": "100mbit", "correct": True, "planned": {"local_seconds": 0.0}}
        | {"seconds": [9e-4 * ms, 1e-3 * ms, 1.1e-3 * ms]}
        | {"seconds_median": 1e-3 * ms, "seconds_p10": 9e-4 * ms, "seconds_p90": 1.1e-3 * ms}
        for method, ms in milliseconds.items()
    ]
    cells.append({"method": "top-k", "correct": False, "ranks": 2, "rate": "100mbit"})
    return {"labs": [{"ranks": 2, "rate": "100mbit", "link": link}], "cells": cells}


DENSE_MS = 1e3 * (2e-3 + 4 * 272_474 / 12.5e6)
"""Two messages, and all numbers once over each link."""


def test_errors_are_those_of_the_model_by_hand() -> None:
    cells = list(predict_cells("f", exchange_result({"dense-fp32": DENSE_MS, "random-k": 1.0})))
    errors = {row["method"]: row["error"] for row, _ in cells}
    assert errors["dense-fp32"] == pytest.approx(0.0, abs=1e-9)
    assert errors["random-k"] > 1
    assert within([row for row, _ in cells]) == 0.5


def test_a_choice_is_judged_by_measured_time_and_step_factor() -> None:
    result = exchange_result({"dense-bf16": 10.0, "top-k-proposals": 8.0, "random-k": 0.1})
    cells = list(predict_cells("f", result))
    factor = next(row["step_factor"] for row, _ in cells if row["method"] == "top-k-proposals")
    (choice,) = judge_choices(cells)
    assert choice["chosen"] == "top-k-proposals"  # predicted so at 100 Mb/s, whatever was measured
    assert choice["best"] == "dense-bf16"
    assert choice["over_best"] == choice["over_dense_bf16"] == pytest.approx(0.8 * factor)
    assert choice["slower_than_dense_bf16"] == (0.9 * 8.0 * factor > 11.0)


def probed_result(milliseconds: dict[str, list[float]]) -> dict[str, Any]:
    """Make a result with single repetitions, of a lab in which an all-reduce takes 7 ms and its bytes."""
    result = exchange_result({method: float(np.median(ms)) for method, ms in milliseconds.items()})
    result["labs"][0]["link"] = {
        "latency": 1.0,
        "bandwidth": 12.5e6,
        "overhead": {"ring_all_reduce": [[128, 0.007]], "ring_all_gather": [[128, 0.001]]},
    }
    for cell in result["cells"]:
        if cell["correct"]:
            cell["seconds"] = [1e-3 * ms for ms in milliseconds[cell["method"]]]
            cell["planned"] = {"local_seconds": 0.003, "unmodelled_seconds": 0.002}
    return result


def test_what_was_probed_beforehand_is_what_predicts() -> None:
    ((row, _),) = predict_cells("f", probed_result({"dense-fp32": [90.0, 100.0, 120.0]}))
    assert row["predicted_seconds"] == pytest.approx(0.007 + 0.003 + 0.002 + 4 * 272_474 / 12.5e6)
    assert row["error"] == pytest.approx(row["predicted_seconds"] / 0.1 - 1)


@pytest.mark.parametrize(("chosen_ms", "slower"), [(60.0, True), (20.0, False)])
def test_a_choice_is_compared_with_dense_in_pairs(chosen_ms: float, slower: bool) -> None:
    # every repetition is disturbed otherwise, but both methods' alike
    disturbance = np.random.default_rng(0).uniform(1, 9, 30)
    result = probed_result(
        {
            "dense-bf16": list(50.0 * disturbance),
            "top-k-proposals": list(chosen_ms * disturbance),
        }
    )
    cells = list(predict_cells("f", result))
    factor = next(row["step_factor"] for row, _ in cells if row["method"] == "top-k-proposals")
    (choice,) = judge_choices(cells)
    assert choice["chosen"] == "top-k-proposals"
    assert choice["over_dense_bf16_low"] == pytest.approx(factor * chosen_ms / 50.0)
    assert choice["over_dense_bf16_high"] == pytest.approx(factor * chosen_ms / 50.0)
    assert choice["slower_than_dense_bf16"] == slower


def intervals(*, common: float, own: float) -> list[tuple[float, float]]:
    """Return intervals of the ratio 1.3, of 25 pairs with noise in common and noise of their own."""
    generator = np.random.default_rng(1)
    found = []
    for _ in range(100):
        shared = generator.lognormal(sigma=common, size=25)
        one, other = (shared * generator.lognormal(sigma=own, size=25) for _ in range(2))
        found.append(interval_of_ratio(list(1.3 * one), list(other)))
    return found


def test_the_interval_of_a_ratio_holds_it_as_often_as_it_says() -> None:
    held = sum(low <= 1.3 <= high for low, high in intervals(common=0.0, own=0.2))
    assert 88 <= held <= 99


def test_noise_in_common_does_not_hide_a_difference() -> None:
    assert sum(low > 1 for low, _ in intervals(common=0.5, own=0.1)) > 90


def test_repetitions_without_a_partner_do_not_count() -> None:
    assert interval_of_ratio([2.0, 2.0, 99.0], [1.0, 1.0]) == (2.0, 2.0)


def test_halves_are_compared_by_their_medians() -> None:
    assert difference_of_halves([9.0, 1.0, 2.0, 2.5, 2.5, 99.0]) == pytest.approx(0.25)
    assert difference_of_halves([2.5, 2.5, 99.0, 9.0, 1.0, 2.0]) == pytest.approx(0.25)


def test_crossings_are_found_between_the_points() -> None:
    found = crossings(
        [1.0, 10.0, 100.0, 1000.0], lambda x: "low" if x < 42 else "middle" if x < 600 else "high"
    )
    assert [(one["below"], one["above"]) for one in found] == [
        ("low", "middle"),
        ("middle", "high"),
    ]
    assert [one["at"] for one in found] == pytest.approx([42.0, 600.0], rel=1e-4)
