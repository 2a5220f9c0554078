"""Schedules against the values of the specification and the authors' log."""

from itertools import pairwise

import pytest

from gsdist.workloads.pruning import PRESETS, PruningConfig, step_at

EVENTS = (0, 1, 25, 50, 100)


@pytest.mark.parametrize(
    ("settings", "name", "expected"),
    [
        (
            {"rate_schedule": "exponential"},
            "rate",
            (0.0, 0.021577, 0.3, 0.375, 0.398438),
        ),
        (
            {"rate_schedule": "cubic"},
            "rate",
            (0.005970, 0.011880, 0.136599, 0.234603, 0.351485),
        ),
        (
            {"softness": 1.0},
            "softness",
            (1.0, 0.944061, 0.237137, 0.0562341, 0.00316228),
        ),
        (
            {"hard_share": 1.0, "hard_schedule": "cubic"},
            "hard_share",
            (0.014925, 0.029701, 0.341497, 0.586506, 0.878713),
        ),
    ],
)
def test_values_of_the_specification(settings, name, expected):
    config = PruningConfig(rate=0.4, **settings)
    found = [getattr(step_at(config, event, 200), name) for event in EVENTS]
    assert found == pytest.approx(expected, rel=1e-5, abs=5e-7)


def test_rows_of_the_authors_log():
    config = PruningConfig(
        rate=0.4,
        rate_schedule="exponential",
        softness=1.0,
        softness_end=1e-5,
        softness_cutoff=0.8,
        hard_share=1.0,
        hard_schedule="cubic",
        hard_snap=0.9,
        rate_snap=0.9,
    )
    early, late = step_at(config, 1, 100), step_at(config, 80, 100)
    assert early.hard_share == pytest.approx(0.058808, abs=5e-7)
    assert early.softness == pytest.approx(0.891251, abs=5e-7)
    assert 1 - early.rate == pytest.approx(0.958010, abs=5e-7)
    assert 1 - late.rate == pytest.approx(0.6000561, abs=5e-8)
    assert late.softness == 0


@pytest.mark.parametrize("total", [1, 2, 12, 200])
@pytest.mark.parametrize("name", PRESETS)
def test_steps_are_monotone_and_end_where_they_must(name, total):
    steps = [step_at(PRESETS[name], event, total) for event in range(total)]
    for earlier, later in pairwise(steps):
        assert later.rate >= earlier.rate
        assert later.hard_share >= earlier.hard_share
        assert later.softness <= earlier.softness
    assert steps[-1].rate == PRESETS[name].rate
    assert steps[-1].softness == 0
    assert steps[-1].hard_share == PRESETS[name].hard_share


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_other_softness_schedules_fall_from_one_to_zero(kind):
    config = PruningConfig(softness=1.0, softness_schedule=kind, softness_cutoff=1.0)
    values = [step_at(config, event, 11).softness for event in range(11)]
    assert values[0] == 1 and values[5] == pytest.approx(0.5) and values[10] == 0


def test_the_cosine_of_the_hard_share_ends_at_nine_tenths():
    config = PruningConfig(hard_share=1.0, hard_schedule="cosine")
    values = [step_at(config, event, 100).hard_share for event in (0, 45, 90, 99)]
    assert values == pytest.approx([0, 0.5, 1, 1])
