"""What the planner says a method sends, against what its reducer issues among threads as workers."""

from collections.abc import Mapping
from typing import Any

import pytest

from gsdist.collectives import LocalGroup, run_together
from gsdist.collectives.cost_model import Transfer, cost_of
from gsdist.errors import InputTypeError
from gsdist.planner.traffic import cost_per_step, steps_of
from gsdist.reducers import (
    DenseConfig,
    GsSgdConfig,
    GsSgdPaperConfig,
    GTopKConfig,
    OkTopKConfig,
    PowerSgdConfig,
    RandomKConfig,
    ReducerConfig,
    SketchedSgdConfig,
    TopKConfig,
)
from tests.distributed.reducer_driver import exchange, make_layout, make_reducer, normal_gradients

COMMON: dict[str, Any] = {"warmup_steps": 1, "min_numel": 600}
SPARSE: dict[str, Any] = {**COMMON, "density": 0.01}
CONFIGS: Mapping[str, ReducerConfig] = {
    "dense": DenseConfig(),
    "dense half": DenseConfig(wire_dtype="bfloat16"),
    "gs-sgd": GsSgdConfig(**COMMON, compression=4.0, refresh_interval=4),
    "gs-sgd float32": GsSgdConfig(**COMMON, compression=8.0, wire_dtype="float32"),
    "gs-sgd-paper": GsSgdPaperConfig(**SPARSE),
    "gs-sgd-paper tree": GsSgdPaperConfig(**SPARSE, wire_dtype="float32", collective="tree"),
    "sketched-sgd": SketchedSgdConfig(**SPARSE),
    "top-k": TopKConfig(**SPARSE),
    "top-k ladder": TopKConfig(**SPARSE, density_ladder=(0.2,), density_ladder_steps=1),
    "proposals": TopKConfig(**SPARSE, exchange="proposals"),
    "g-top-k": GTopKConfig(**SPARSE),
    "ok-top-k": OkTopKConfig(**{**SPARSE, "density": 0.2}),
    "random-k": RandomKConfig(**SPARSE),
    "power-sgd": PowerSgdConfig(**COMMON, rank=3),
}
STEPS = 24
INEXACT = ("proposals", "ok-top-k")


@pytest.fixture(scope="module", params=[1, 2, 3, 4])
def issued(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return, by method, the collectives of every step on every rank."""

    def run(group: LocalGroup) -> dict[str, list[tuple[Transfer, ...]]]:
        found = {}
        for name, config in CONFIGS.items():
            reducer, steps = make_reducer(config, group), []
            for step in range(STEPS):
                gradients = normal_gradients(10 * step + group.rank())
                exchange(reducer, gradients, layout=make_layout(config))
                steps.append(reducer.statistics().transfers_last_step)
            found[name] = steps
        return found

    world_size = request.param
    return {
        "world size": world_size,
        "ranks": run_together(LocalGroup.create(world_size, timeout=60), run),
    }


@pytest.mark.parametrize("name", sorted(set(CONFIGS) - set(INEXACT)))
def test_every_step_is_of_a_kind_that_was_foreseen(issued: dict[str, Any], name: str) -> None:
    config, ranks = CONFIGS[name], issued["world size"]
    foreseen = {transfers for _, transfers in steps_of(config, make_layout(config), ranks)}
    assert set(issued["ranks"][0][name][-8:]) <= foreseen


def test_gs_sgd_searches_as_often_as_foreseen(issued: dict[str, Any]) -> None:
    config = CONFIGS["gs-sgd"]
    (refreshes, refresh), (others, _) = steps_of(config, make_layout(config), issued["world size"])
    last_two_intervals = issued["ranks"][0]["gs-sgd"][-2 * (refreshes + others) :]
    assert last_two_intervals.count(refresh) == 2 * refreshes


@pytest.mark.parametrize("name", INEXACT)
def test_what_depends_on_gradients_is_foreseen_within_a_quarter(
    issued: dict[str, Any], name: str
) -> None:
    """Random gradients: proposals hardly coincide, and regions hold nearly equal shares."""
    config, ranks = CONFIGS[name], issued["world size"]
    foreseen = cost_per_step(config, make_layout(config), ranks)
    for steps in issued["ranks"][0][name][-3:]:
        seen = cost_of(steps, ranks)
        assert foreseen.messages == seen.messages
        assert foreseen.bytes == pytest.approx(seen.bytes, rel=0.25)


def test_one_worker_sends_nothing() -> None:
    for config in CONFIGS.values():
        assert cost_per_step(config, make_layout(config), 1).bytes == 0


def test_what_is_no_method_is_refused() -> None:
    with pytest.raises(InputTypeError, match="str"):
        steps_of("dense", make_layout(DenseConfig()), 2)  # type: ignore[arg-type]
