"""`gsdist train` and the examples under mpirun, against the same under torchrun on gloo."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.mpirun import OPEN_MPI_SETTINGS, find_mpirun
from gsdist.training.summary import read_summaries
from tests.distributed.mpi_job import (
    ROOT,
    TIME_LIMIT,
    JobResult,
    losses,
    require_mpi,
    run_job,
    torchrun,
)

require_mpi()

STEPS = 20
TRAIN = [
    *("-m", "gsdist", "train", "classification", "--data", "digits", "--model", "mlp"),
    *("--batch-size", "16", "--steps", str(STEPS), "--log-every", "1", "--no-progress"),
]
# Half precision on the wire would round the sums in another order, and the search amplifies that.
GS_SGD = [
    *("--reducer", "gs-sgd", "--reducer.min-numel", "100", "--reducer.compression", "8"),
    *("--reducer.wire-dtype", "float32"),
]


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "reducer",
    [GS_SGD, pytest.param(["--reducer", "dense"], marks=pytest.mark.slow)],
    ids=["gs-sgd", "dense"],
)
def test_mpirun_trains_as_torchrun_does_on_gloo(reducer: list[str], tmp_path: Path) -> None:
    command = [*TRAIN, *reducer, "--run-dir"]
    job = run_job(4, [*command, str(tmp_path / "mpi")])
    assert job.exit_code == 0, job.output
    done = torchrun(4, [*command, str(tmp_path / "gloo")])
    assert done.returncode == 0, done.stderr
    by_mpi, by_gloo = losses(tmp_path / "mpi"), losses(tmp_path / "gloo")
    assert len(by_mpi) == STEPS
    assert by_mpi == pytest.approx(by_gloo, abs=1e-5)
    assert by_mpi[0] != by_mpi[-1]
    (summary,) = read_summaries(tmp_path / "mpi")
    assert summary.world_size == 4


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_gloo_and_a_world_of_one_work_under_mpirun_too(tmp_path: Path) -> None:
    command = [*TRAIN, "--reducer", "dense", "--run-dir", str(tmp_path), "--backend"]
    for world_size, backend in ((2, "gloo"), (1, "mpi4py")):
        job = run_job(world_size, [*command, backend])
        assert job.exit_code == 0, job.output
        assert f"on {world_size} worker(s)" in job.output


def test_a_mistake_in_the_settings_has_its_exit_code_and_names_the_rank(tmp_path: Path) -> None:
    job = run_job(2, [*TRAIN, "--batch-size", "5000", "--run-dir", str(tmp_path)])
    assert job.exit_code == 2, job.output
    assert "[rank 0/2]" in job.output or "[rank 1/2]" in job.output
    assert "lower batch_size" in job.output


@pytest.mark.slow
def test_ranks_that_mpi_does_not_connect_are_refused(tmp_path: Path) -> None:
    command = [*TRAIN, "--backend", "mpi4py", "--run-dir", str(tmp_path)]
    done = torchrun(2, command)
    assert done.returncode != 0
    assert "for MPI this is rank 0 of 1" in done.stderr


def assert_trained(job: JobResult) -> None:
    assert job.exit_code == 0, job.output
    first, *_, last = map(float, re.findall(r"loss (\d+\.\d+)", job.output))
    assert last < first / 2


@pytest.mark.parametrize("backend", ["mpi4py", pytest.param("gloo", marks=pytest.mark.slow)])
def test_the_example_trains(backend: str) -> None:
    assert_trained(run_job(2, ["examples/ddp_script.py", backend]))


@pytest.mark.slow
def test_the_example_trains_on_the_hosts_of_a_file() -> None:
    launcher = find_mpirun()
    assert launcher is not None
    version = subprocess.run([launcher, "--version"], capture_output=True, text=True, check=True)
    if "Open MPI" not in version.stdout:
        pytest.skip("other launchers write their host files otherwise")
    command = ["examples/ddp_script.py", "mpi4py"]
    assert_trained(run_job(2, command, "--hostfile", "examples/mpi/hosts"))


SRUN = """#!/bin/sh
# stands in for srun: takes its options away and starts as many ranks as the job has
while [ "${1#--}" != "$1" ]; do echo "srun $1" >&2; shift; done
[ "$1" = python ] && shift
exec "$MPIRUN" -n "$SLURM_NTASKS" "$PYTHON" "$@"
"""


def test_the_slurm_script_trains(tmp_path: Path) -> None:
    """Slurm itself is not there: this checks the command that it would run on every rank."""
    srun = tmp_path / "srun"
    srun.write_text(SRUN)
    srun.chmod(0o755)
    slurm = {"SLURM_NTASKS": "2", "SLURM_CPUS_PER_TASK": "1", "SLURM_JOB_ID": "4711"}
    launcher = find_mpirun()
    assert launcher is not None
    small = ["--data", "digits", "--model", "mlp", "--batch-size", "16", "--steps", "4"]
    done = subprocess.run(
        ["bash", str(ROOT / "examples/mpi/job.slurm"), *small, "--reducer.min-numel", "100"],
        cwd=tmp_path,
        env=os.environ
        | OPEN_MPI_SETTINGS
        | slurm
        | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        | {"MPIRUN": launcher, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
    )
    assert done.returncode == 0, done.stderr
    assert "srun --kill-on-bad-exit=1" in done.stderr
    (summary,) = read_summaries(tmp_path / "runs" / "4711")
    assert summary.world_size == 2
