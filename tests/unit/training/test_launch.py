"""Launch detection from an environment, and the group of one process."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from gsdist.errors import ConfigError
from gsdist.training import Launcher, detect_launch, process_group

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "29500",
}


OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}
MPICH = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1"}
SRUN = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1"}


def test_plain_python_is_a_world_of_one() -> None:
    launch = detect_launch({"PATH": "/bin"})
    assert (launch.launcher, launch.rank, launch.world_size, launch.local_rank) == (
        Launcher.PLAIN, 0, 1, 0,
    )  # fmt: skip
    assert all("assumed" in source for source in launch.sources.values())


def test_torchrun_is_read_from_its_environment() -> None:
    launch = detect_launch(TORCHRUN)
    assert (launch.launcher, launch.rank, launch.world_size, launch.local_rank) == (
        Launcher.TORCHRUN, 3, 4, 1,
    )  # fmt: skip
    assert launch.sources == {
        "rank": "RANK",
        "world_size": "WORLD_SIZE",
        "local_rank": "LOCAL_RANK",
    }
    assert "world_size=4 (WORLD_SIZE)" in launch.describe()


def test_missing_local_rank_is_said_to_be_assumed() -> None:
    launch = detect_launch({k: v for k, v in TORCHRUN.items() if k != "LOCAL_RANK"})
    assert launch.local_rank == 3
    assert "assumed" in launch.sources["local_rank"]


@pytest.mark.parametrize("missing", ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_incomplete_environment_is_refused(missing: str) -> None:
    with pytest.raises(ConfigError, match=f"not {missing}"):
        detect_launch({k: v for k, v in TORCHRUN.items() if k != missing})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"RANK": "4"}, "RANK=4 does not fit WORLD_SIZE=4"),
        ({"RANK": "-1"}, "RANK=-1"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two' is not a whole number"),
    ],
)
def test_contradictions_are_refused(change: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        detect_launch({**TORCHRUN, **change})


@pytest.mark.parametrize(
    ("environment", "launcher"),
    [(OPEN_MPI, Launcher.OPEN_MPI), (MPICH, Launcher.PMI), (SRUN, Launcher.SLURM)],
)
def test_other_launchers_are_read_from_their_variables(
    environment: dict[str, str], launcher: Launcher
) -> None:
    launch = detect_launch(environment)
    assert (launch.launcher, launch.rank, launch.world_size, launch.local_rank) == (
        launcher, 3, 4, 1,
    )  # fmt: skip
    assert list(launch.sources.values()) == list(environment)
    rank, world_size, _ = environment
    alone = detect_launch({rank: "0", world_size: "1"})
    assert (alone.launcher, alone.rank, alone.world_size, alone.local_rank) == (launcher, 0, 1, 0)
    assert "assumed" in alone.sources["local_rank"]
    with pytest.raises(ConfigError, match=f"not {rank}"):
        detect_launch({world_size: "1"})


@pytest.mark.parametrize("other", [OPEN_MPI, MPICH])
def test_two_launchers_must_agree(other: dict[str, str]) -> None:
    rank, world_size, _ = other
    for name, own in ((rank, "RANK"), (world_size, "WORLD_SIZE")):
        with pytest.raises(ConfigError, match=f"{own}={TORCHRUN[own]} but {name}=7"):
            detect_launch({**TORCHRUN, **other, name: "7"})
    assert detect_launch({**TORCHRUN, **other}).launcher is Launcher.TORCHRUN
    # a wrapper script may have set these two alone, for programs that want them
    bare = {name: TORCHRUN[name] for name in ("RANK", "WORLD_SIZE")}
    assert detect_launch({**bare, **other}).sources["rank"] == rank


def test_mpirun_inside_an_allocation_of_slurm_counts_and_the_allocation_alone_does_not() -> None:
    daemon = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0"}
    assert detect_launch({**daemon, **OPEN_MPI}).rank == 3
    assert detect_launch({**daemon, **TORCHRUN}).launcher is Launcher.TORCHRUN
    script = {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    assert detect_launch(script).launcher is Launcher.PLAIN


def test_gloo_under_srun_needs_the_address_of_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with (
        pytest.raises(ConfigError, match="MASTER_ADDR"),
        process_group(detect_launch(SRUN), timedelta(seconds=1), "gloo"),
    ):
        pass


def test_group_of_one_reduces_and_closes() -> None:
    with process_group(detect_launch({}), timedelta(seconds=10)):
        value = torch.tensor([3.0])
        dist.all_reduce(value)
        assert (value.item(), dist.get_world_size()) == (3.0, 1)
        with process_group(detect_launch({}), timedelta(seconds=10)):
            pass
        assert dist.is_initialized(), "an inner block closed a group it did not open"
    assert not dist.is_initialized()
