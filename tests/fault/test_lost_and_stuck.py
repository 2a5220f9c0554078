"""Ranks that die, stop or are busy: the others leave in time, with one verdict, and say who is missing."""

import re
import signal
import time
from pathlib import Path

import pytest

from tests.fault.injection import Fault
from tests.fault.job import DEADLINE, Job, training

pytestmark = pytest.mark.timeout(400)

LOST, LATE = 67, 66
GRACE = 5.0
"""What the issue grants beyond the deadline; the harness's own limits are far longer."""


def survivors_leave(job: Job, ranks: list[int], phase: str) -> None:
    codes = job.join(ranks)
    for rank, code in zip(ranks, codes, strict=True):
        said = job.output(rank)
        assert code in (LOST, LATE), (rank, code, said)
        assert re.search(rf"error: \[rank {rank}/3\] .*step \d+, {phase}", said), said
        assert "the last collectives are in" in said


@pytest.mark.parametrize("phase", ["allreduce_sketch", "allreduce_factors", "allreduce_values"])
@pytest.mark.parametrize("action", ["kill", pytest.param("stop", marks=pytest.mark.slow)])
def test_a_rank_killed_or_stopped_before_an_exchange(
    action: str, phase: str, tmp_path: Path
) -> None:
    fault = Fault(rank=1, step=1, action=action, place=phase)
    with Job.start(tmp_path, training(tmp_path), fault=fault) as job:
        survivors_leave(job, [0, 2], phase)
        named = [rank for rank in (0, 2) if "rank(s) 1 within" in job.output(rank)]
        assert named, "nobody names the rank that is missing"
        if action == "kill":
            assert job.join([1]) == [-signal.SIGKILL]
        else:
            job.signal(1, signal.SIGCONT)
            (code,) = job.join([1])
            assert code in (LOST, LATE), "it went on alone"
    dumps = [(tmp_path / "run" / f"collectives-rank{rank}.txt").read_text() for rank in (0, 2)]
    assert all(re.search(rf"failed after .*step \d+, {phase}", dump) for dump in dumps), dumps


def test_a_rank_that_holds_the_interpreter_does_not_hold_the_others(tmp_path: Path) -> None:
    fault = Fault(rank=2, step=3, action="hold gil", seconds=2 * DEADLINE)
    with Job.start(tmp_path, training(tmp_path, timeout=DEADLINE / 2), fault=fault) as job:
        survivors_leave(job, [0, 1], "")
        (code,) = job.join([2])
        assert code in (LOST, LATE)


@pytest.mark.parametrize("action", ["raise", "out of memory"])
def test_an_error_of_one_rank_ends_the_others(action: str, tmp_path: Path) -> None:
    fault = Fault(rank=0, step=3, action=action, place="allreduce_values")
    with Job.start(tmp_path, training(tmp_path, timeout=60), fault=fault) as job:
        codes = job.join()
        assert codes[0] == 1 and all(code in (LOST, LATE) for code in codes[1:]), codes
        assert ("spilt coffee" if action == "raise" else "out of memory") in job.output(0)


def test_a_slow_rank_is_waited_for_and_named(tmp_path: Path) -> None:
    fault = Fault(rank=1, step=1, action="sleep", seconds=0.2, every_step=True)
    with Job.start(tmp_path, training(tmp_path, timeout=60), fault=fault) as job:
        assert job.join() == [0, 0, 0]
        assert "rank 1 is slow" in job.output(0)
    records = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert '"wait_ms/1"' in records


@pytest.mark.slow
def test_the_time_to_notice_is_bounded(tmp_path: Path) -> None:
    """Not on a busy machine: the harness allows minutes, this asks for the deadline and 5 seconds."""
    fault = Fault(rank=1, step=4, action="stop", place="allreduce_values")
    with Job.start(tmp_path, training(tmp_path), fault=fault) as job:
        while "State:\tT" not in Path(f"/proc/{job.processes[1].pid}/status").read_text():
            time.sleep(0.01)
        stopped = time.monotonic()
        job.join([0, 2])
        assert time.monotonic() - stopped < DEADLINE + GRACE
