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


def test_group_of_one_reduces_and_closes() -> None:
    with process_group(detect_launch({}), timedelta(seconds=10)):
        value = torch.tensor([3.0])
        dist.all_reduce(value)
        assert (value.item(), dist.get_world_size()) == (3.0, 1)
        with process_group(detect_launch({}), timedelta(seconds=10)):
            pass
        assert dist.is_initialized(), "an inner block closed a group it did not open"
    assert not dist.is_initialized()
