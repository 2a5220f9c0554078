"""A student taught on two workers with compressed gradients, started by mpirun and by torchrun."""

from pathlib import Path

import pytest
import torch

from gsdist.training.summary import read_summaries
from gsdist.workloads.distillation import HsakdTeacherConfig, HsakdTeacherWorkload
from tests.distributed.mpi_job import losses, require_mpi, run_job, torchrun

require_mpi()

NETWORK = "resnet8-narrow"
# In so small a network all matrices are small, and float32 sums are alike on both transports.
COMMAND = [
    *("-m", "gsdist", "train", "hsakd-student", "--data", "digits", "--model", NETWORK),
    *("--teacher", NETWORK, "--norm", "group", "--batch-size", "16", "--steps", "40"),
    *("--learning-rate", "0.02", "--log-every", "1", "--evaluate-every", "40", "--no-progress"),
    *("--reducer", "gs-sgd", "--reducer.min-numel", "128", "--reducer.compression", "8"),
    *("--reducer.wire-dtype", "float32"),
]


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    torch.manual_seed(3)
    config = HsakdTeacherConfig(model=NETWORK, data="digits", norm="group")
    torch.save(HsakdTeacherWorkload(config).build_model().state_dict(), tmp_path / "teacher.pt")
    return [*COMMAND, "--teacher-weights", str(tmp_path / "teacher.pt"), "--run-dir"]


def expect_learning(run: Path) -> list[float]:
    curve = losses(run)
    (summary,) = read_summaries(run)
    assert (summary.world_size, summary.reducer, len(curve)) == (2, "gs-sgd", 40)
    assert summary.compression > 2
    # The branches have the larger matrices, which compress better.
    apart = summary.compression_of
    assert 1 < apart["backbone"] < summary.compression < apart["branches"]
    assert sum(curve[-5:]) < 0.9 * sum(curve[:5])
    return curve


def test_the_loss_falls_under_mpirun(command: list[str], tmp_path: Path) -> None:
    job = run_job(2, [*command, str(tmp_path / "mpi")])
    assert job.exit_code == 0, job.output
    expect_learning(tmp_path / "mpi")


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_torchrun_takes_the_same_course(command: list[str], tmp_path: Path) -> None:
    job = run_job(2, [*command, str(tmp_path / "mpi")])
    assert job.exit_code == 0, job.output
    done = torchrun(2, [*command, str(tmp_path / "gloo")])
    assert done.returncode == 0, done.stderr
    curve = expect_learning(tmp_path / "gloo")
    assert curve == pytest.approx(losses(tmp_path / "mpi"), abs=1e-4)
