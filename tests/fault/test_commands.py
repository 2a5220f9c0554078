"""The commands that repeat faults many times, a few times each."""

import random
from pathlib import Path

import pytest

from tests.fault.kill_and_resume import check
from tests.fault.soak import random_fault, run_job

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_killed_runs_resume_with_the_same_bits() -> None:
    assert check(repetitions=3, seed=7) == []


def test_a_few_jobs_of_the_soak_hold(tmp_path: Path) -> None:
    choices = random.Random(3)
    for number in range(4):
        outcome = run_job(tmp_path / str(number), random_fault(choices), "gs-sgd")
        assert outcome["wrong"] == [], outcome
