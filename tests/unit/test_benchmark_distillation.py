"""The distillation benchmark: what it concludes from accuracies, and how it sets runs beside papers."""

import dataclasses
from typing import Any

import pytest

from benchmarks.distillation.experiments import CIFAR10, DIGITS
from benchmarks.distillation.published import PUBLISHED, compare, table
from benchmarks.distillation.result import Result
from gsdist.training import RunSummary
from gsdist.workloads.distillation.presets import PAIRS, PEERS


def results(**means: float) -> dict[str, Result]:
    base = {"baseline": 80.0, "kd": 84.0, "kd_rotations": 90.0, "hsakd": 91.0, "compressed": 90.5}
    base |= means
    return {
        method: result([value - 1, value, value + 1])
        for method, value in zip(DIGITS.methods, base.values(), strict=True)
    }


def result(accuracies: list[float], compression: float = 12.0) -> Result:
    repeated = {"compression": [compression] * len(accuracies), "seconds": [1.0] * len(accuracies)}
    return Result(accuracies=accuracies, **repeated)


def failing(**means: float) -> list[str]:
    return [name for name, holds in DIGITS.check(results(**means)).items() if not holds]


def test_expectations_hold_and_fail_one_by_one() -> None:
    assert failing() == []
    assert failing(hsakd=83.9, compressed=83.5) == ["hsakd is at least as good as kd"]
    assert failing(kd=78.9) == ["kd is at most 1 point below baseline"]
    assert failing(compressed=89.9) == ["gs-sgd is within 1 point of dense"]
    assert "hsakd beats baseline in four seeds of five" in failing(hsakd=79.0)
    assert "hsakd is at least 3 points above baseline" in failing(hsakd=82.0)
    few = results() | {"hsakd with gs-sgd": result([91.0], compression=9.9)}
    assert not DIGITS.check(few)["gs-sgd sends at most a tenth"]


def test_on_cifar10_the_order_is_expected() -> None:
    rows = {"baseline": result([60.0]), "kd": result([62.0]), "hsakd": result([61.0])}
    assert list(CIFAR10.check(rows).values()) == [False, True]
    assert all(CIFAR10.check(rows | {"hsakd": result([63.0])}).values())


def test_wins_are_counted_in_pairs() -> None:
    found = result([1.0, 5.0, 3.0]).to_mapping(result([2.0, 4.0, 3.0]))
    assert (found["mean"], found["sd"], found["wins"]) == (3.0, 2.0, 1)


def summary(workload: str, seed: int, curve: list[float], **settings: Any) -> RunSummary:
    values: dict[str, Any] = {field.name: None for field in dataclasses.fields(RunSummary)}
    values |= {
        "workload": workload,
        "primary_metric": "accuracy",
        "metrics": {"accuracy": curve[-1]},
        "curves": {"train": {}, "evaluation": {"accuracy": curve}},
        "config": {"workload": settings, "train": {"seed": seed}},
    }
    return RunSummary(**values)


def test_runs_stand_beside_the_published_row_of_their_pair() -> None:
    pair = {"model": "resnet20", "teacher": "resnet56", "data": "cifar100"}
    rows = compare(
        [
            summary("hsakd-student", 1, [0.70, 0.74, 0.73], **pair),
            summary("hsakd-student", 0, [0.71, 0.75], **pair),
            summary("classification", 0, [0.69], model="resnet20", data="cifar100"),
            summary("kd", 0, [0.9], model="resnet20", teacher="resnet56", data="cifar10"),
        ]
    )
    assert [row.published for row in rows] == [
        "hsakd 72.58 .33, hsakd* 73.73 .10",
        "69.62 .26",
        "-",
    ]
    assert (rows[0].seeds, rows[0].last) == ([0, 1], pytest.approx([73, 75]))
    assert rows[0].best == pytest.approx([74, 75])
    text = table(rows)
    assert "74.00 sd 1.41" in text
    assert "resnet56:resnet20" in text


def test_runs_of_peers_stand_beside_the_published_row_of_their_workload() -> None:
    rows = compare(
        [
            summary("hssakd-online", 0, [0.8], model="wrn-40-2", data="cifar100"),
            summary("mcl", 0, [0.7], model="wrn-40-2", data="cifar100", peers=2),
            summary("mcl", 0, [0.9], model="resnet8", data="cifar10", peers=2),
        ]
    )
    assert [row.published for row in rows] == [
        "82.58 .21",
        "2 peers 77.51 .42, 4 peers 78.84 .22",
        "-",
    ]


def test_every_preset_has_published_accuracies() -> None:
    peers = {f"{n}:{n} {workload}" for workload, names in PEERS.items() for n in names}
    assert set(PUBLISHED) == set(PAIRS) | peers
