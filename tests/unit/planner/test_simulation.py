"""The simulation against the cost model where both apply, and by hand where they must differ."""

import numpy as np
import pytest

from gsdist.collectives.cost_model import COST_FUNCTIONS, Link, Transfer, cost_of
from gsdist.errors import ConfigError
from gsdist.planner import CANDIDATES, Measured, Situation, predict, transformer_shapes
from gsdist.planner.prediction import SKEW
from gsdist.planner.simulation import _ALGORITHMS, Variation, _Network, simulate_step
from gsdist.reducers import DenseConfig, lay_out
from tests.unit.planner.test_planner import DENSE, PARAMETERS

LINK = Link(latency=0.003, bandwidth=1e6)
SIZE = 64_000.0


def run(kind: str, ranks: int, ready: list[float] | None = None, **variation: int) -> np.ndarray:
    situation = Situation(ranks=ranks, link=LINK, compute_seconds=0.0)
    network = _Network(situation, Variation(**variation))
    return network.run((Transfer(kind=kind, size=SIZE),), np.array(ready or [0.0] * ranks))


def test_every_collective_of_the_cost_model_can_be_simulated() -> None:
    assert set(_ALGORITHMS) == set(COST_FUNCTIONS)


@pytest.mark.parametrize("kind", sorted(COST_FUNCTIONS))
@pytest.mark.parametrize("ranks", [1, 2, 4, 8, 64])
def test_equal_workers_with_links_of_their_own_take_what_the_cost_model_says(
    kind: str, ranks: int
) -> None:
    expected = cost_of((Transfer(kind=kind, size=SIZE),), ranks).seconds(LINK)
    assert run(kind, ranks).max() == pytest.approx(expected)


@pytest.mark.parametrize("kind", sorted(COST_FUNCTIONS))
@pytest.mark.parametrize("ranks", [3, 5, 11])
def test_any_number_of_workers_takes_no_longer_than_the_cost_model_says(
    kind: str, ranks: int
) -> None:
    expected = cost_of((Transfer(kind=kind, size=SIZE),), ranks).seconds(LINK)
    assert expected / 2 < run(kind, ranks).max() <= expected * (1 + 1e-9)


def test_all_wait_for_one_who_is_late() -> None:
    late = run("ring_all_reduce", 4, [0.0, 0.0, 1.0, 0.0])
    assert (late >= 1.0 + 3 * (0.003 + 0.016)).all()
    # a leaf of the tree that is late delays the root, a late root only the way down
    assert run("tree_reduce", 4, [0.0, 0.0, 0.0, 1.0])[0] == pytest.approx(1 + 2 * 0.067)


def test_a_shared_link_serves_one_message_after_the_other() -> None:
    """Four workers in pairs, each to the one two further on: both of a pair want the pair's link."""
    situation = Situation(ranks=4, link=LINK, compute_seconds=0.0)
    everyone = np.arange(4)
    for per_link, last in ((1, 0.067), (2, 0.064 + 0.067)):
        network = _Network(situation, Variation(workers_per_link=per_link))
        arrived = network.send(everyone, (everyone + 2) % 4, np.zeros(4), SIZE)
        assert arrived.max() == pytest.approx(last)
        assert arrived.min() == pytest.approx(0.067)
    # a ring crosses the link of each pair once per round, so sharing costs it nothing
    assert run("ring_all_reduce", 4, workers_per_link=2).max() == pytest.approx(
        run("ring_all_reduce", 4).max()
    )
    # of all pairs among two fours, 16 messages of a seventh each want one link
    crossing = run("all_to_all", 8, workers_per_link=4).max()
    assert 16 * SIZE / 7 / 1e6 <= crossing <= 16 * SIZE / 7 / 1e6 + 7 * 0.003


@pytest.mark.parametrize("name", ["dense", "gs-sgd-30x", "top-k", "ok-top-k", "g-top-k"])
def test_without_variation_a_step_is_the_predicted_one(name: str) -> None:
    candidate = CANDIDATES[name]
    shapes = transformer_shapes(2e5)
    parameters = {n: PARAMETERS["weight"].new_empty(shape) for n, shape in shapes.items()}
    layout = lay_out(candidate.config, {n: p.requires_grad_() for n, p in parameters.items()})
    situation = Situation(ranks=8, link=LINK, compute_seconds=0.3)
    simulated = simulate_step(candidate, layout, SKEW * 0.01, situation, Variation())
    predicted = predict(candidate, layout, Measured(local_seconds=0.01), situation).step_seconds
    assert simulated == pytest.approx(predicted, rel=0.02)


def test_stragglers_cost_more_the_more_workers_there_are() -> None:
    layout = lay_out(DenseConfig(), PARAMETERS)

    def seconds(ranks: int, spread: float) -> float:
        situation = Situation(
            ranks=ranks, link=Link(latency=0.0, bandwidth=1e12), compute_seconds=1.0
        )
        return simulate_step(DENSE, layout, 0.0, situation, Variation(spread=spread))

    assert seconds(16, 0.0) == pytest.approx(1.0, rel=1e-4)
    # the largest of n lognormals: about exp(0.2 * 1.77) and exp(0.2 * 2.96) for n = 16 and 512
    assert 1.2 < seconds(16, 0.2) < 1.7
    assert seconds(16, 0.2) < seconds(512, 0.2) < 2.1


@pytest.mark.parametrize("settings", [{"spread": -0.1}, {"workers_per_link": 0}])
def test_variations_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        Variation(**settings)
