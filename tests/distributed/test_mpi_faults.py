"""What ends a job under mpirun: killed, stuck and failing ranks, in time, and nothing is left behind."""

import re
from pathlib import Path

import pytest

from tests.distributed.mpi_job import JobResult, processes_of, require_mpi, run_job
from tests.processes import is_gone

require_mpi()

PREPARE = """
import os, signal, sys, time
from datetime import timedelta
import torch
import torch.distributed as dist
import gsdist.collectives.mpi
dist.init_process_group("mpi4py", timeout=timedelta(seconds={deadline}))
rank = dist.get_rank()
dist.barrier()
"""
FOREVER = """
while True:
    dist.all_reduce(torch.ones(1000))
"""


def run(folder: Path, script: str, *, deadline: int = 60, ranks: int = 3) -> JobResult:
    file = folder / "script.py"
    file.write_text(PREPARE.format(deadline=deadline) + script)
    return run_job(ranks, [str(file)])


def assert_nothing_is_left(job: JobResult) -> None:
    assert all(is_gone(process) for process in processes_of(job.mark))


def test_a_killed_rank_ends_the_job_and_is_named(tmp_path: Path) -> None:
    job = run(tmp_path, "if rank == 1: os.kill(os.getpid(), signal.SIGKILL)" + FOREVER, deadline=20)
    assert job.exit_code != 0
    # Open MPI and MPICH each have their own words
    assert re.search(r"rank 1\b|BAD TERMINATION", job.output), job.output
    assert_nothing_is_left(job)


@pytest.mark.parametrize("stopped", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_stopped_rank_ends_the_job_at_the_deadline(tmp_path: Path, stopped: int) -> None:
    script = f"if rank == {stopped}: os.kill(os.getpid(), signal.SIGSTOP)" + FOREVER
    job = run(tmp_path, script, deadline=3)
    assert job.exit_code == 66, job.output
    stuck = r"rank \d/3: all_reduce \(number \d+, group \w+\)"
    assert re.search(rf"{stuck} did not finish within 3 s", job.output), job.output
    named = re.search(rf"{stuck}: ranks \[1\] of the group have not come", job.output)
    assert named or stopped == 0, job.output  # rank 0 keeps the list
    assert_nothing_is_left(job)


@pytest.mark.parametrize(
    ("failure", "exit_code"),
    [("raise RuntimeError('spilt coffee')", 1), ("dist.group.WORLD.abort(); sys.exit(7)", 7)],
)
def test_a_rank_that_fails_takes_the_others_along_at_once(
    tmp_path: Path, failure: str, exit_code: int
) -> None:
    job = run(tmp_path, f"if rank == 2: {failure}" + FOREVER, deadline=600)
    # 9: MPICH may tell how it ended the others
    assert job.exit_code in (exit_code, 9), job.output
    assert "did not finish within" not in job.output
    assert_nothing_is_left(job)
