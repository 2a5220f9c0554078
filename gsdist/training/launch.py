"""Find out how this process was started, and open the process group that fits."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from types import MappingProxyType

import torch.distributed as dist

from gsdist.errors import ConfigError

__all__ = ["Launch", "Launcher", "detect_launch", "process_group"]

_REQUIRED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Launcher(StrEnum):
    """Name who started the processes of a job."""

    PLAIN = "plain"
    """One process, started by hand: world size 1, nothing on the network."""
    TORCHRUN = "torchrun"
    """torchrun, or anything else that sets the variables of torch's `env://` method."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """Say which worker this process is, and where each value was found."""

    launcher: Launcher
    rank: int
    world_size: int
    local_rank: int
    """Position among the processes of this machine."""
    sources: Mapping[str, str]
    """For each of the three numbers: the environment variable it was read from, or why it is assumed."""

    def describe(self) -> str:
        """Return one line for logs."""
        values = {"rank": self.rank, "world_size": self.world_size, "local_rank": self.local_rank}
        found = ", ".join(
            f"{name}={value} ({self.sources[name]})" for name, value in values.items()
        )
        return f"started by {self.launcher}: {found}"


def detect_launch(environment: Mapping[str, str] | None = None) -> Launch:
    """Read the launcher's environment (default: `os.environ`); without one, this is a job of one process.

    Raises:
        ConfigError: when the variables are incomplete, not numbers, or contradict each other.
    """
    environment = os.environ if environment is None else environment
    if "RANK" not in environment and "WORLD_SIZE" not in environment:
        assumed = "assumed: no launcher in the environment"
        return Launch(
            launcher=Launcher.PLAIN,
            rank=0,
            world_size=1,
            local_rank=0,
            sources=MappingProxyType(dict.fromkeys(("rank", "world_size", "local_rank"), assumed)),
        )
    present = [name for name in _REQUIRED if name in environment]
    missing = [name for name in _REQUIRED if name not in environment]
    if missing:
        raise ConfigError(
            f"the environment sets {', '.join(present)} but not {', '.join(missing)}; "
            "start with torchrun, or unset RANK and WORLD_SIZE to run one process"
        )
    rank = _number(environment, "RANK")
    world_size = _number(environment, "WORLD_SIZE")
    if not 0 <= rank < world_size:
        raise ConfigError(
            f"RANK={rank} does not fit WORLD_SIZE={world_size}; expected 0 <= RANK < WORLD_SIZE"
        )
    local_rank, local_source = rank, "assumed: same as RANK, LOCAL_RANK is not set"
    if "LOCAL_RANK" in environment:
        local_rank, local_source = _number(environment, "LOCAL_RANK"), "LOCAL_RANK"
    return Launch(
        launcher=Launcher.TORCHRUN,
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        sources=MappingProxyType(
            {"rank": "RANK", "world_size": "WORLD_SIZE", "local_rank": local_source}
        ),
    )


@contextmanager
def process_group(launch: Launch, timeout: timedelta) -> Iterator[None]:
    """Open the default gloo process group for the time of the block.

    A group that is already open is used and left open. A job of one process gets a group of one that
    lives in memory and opens no port. Collectives: the rendezvous of `init_process_group`.
    """
    if dist.is_initialized():
        yield
        return
    plain = launch.launcher is Launcher.PLAIN
    dist.init_process_group(
        "gloo",
        init_method=None if plain else "env://",
        store=dist.HashStore() if plain else None,  # type: ignore[attr-defined]
        rank=launch.rank,
        world_size=launch.world_size,
        timeout=timeout,
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def _number(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except ValueError:
        raise ConfigError(
            f"{name}={environment[name]!r} is not a whole number; let the launcher set it"
        ) from None
