"""Find out how this process was started, and open the process group that fits."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any, Literal

import torch.distributed as dist

from gsdist.collectives import transport_failures
from gsdist.errors import ConfigError
from gsdist.training.rendezvous import meet

__all__ = ["Backend", "Launch", "Launcher", "detect_launch", "process_group"]

Backend = Literal["auto", "gloo", "mpi4py", "nccl"]
_REQUIRED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_NUMBERS = ("rank", "world_size", "local_rank")


class Launcher(StrEnum):
    """Name who started the processes of a job."""

    PLAIN = "plain"
    """One process, started by hand: world size 1, nothing on the network."""
    TORCHRUN = "torchrun"
    """torchrun, or anything else that sets the variables of torch's `env://` method."""
    OPEN_MPI = "mpirun (Open MPI)"
    PMI = "mpirun (MPICH)"
    """The launcher of MPICH or of one of its relatives, or srun with PMI."""
    SLURM = "srun"


_VARIABLES: Mapping[Launcher, tuple[str, str, str]] = MappingProxyType(
    {
        Launcher.TORCHRUN: ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        Launcher.OPEN_MPI: (
            "OMPI_COMM_WORLD_RANK",
            "OMPI_COMM_WORLD_SIZE",
            "OMPI_COMM_WORLD_LOCAL_RANK",
        ),
        Launcher.PMI: ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
        Launcher.SLURM: ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    }
)
"""Where each launcher puts rank, world size and local rank. An earlier one counts before a later one: mpirun
inside an allocation of Slurm leaves the variables of Slurm's own step behind, which say something else."""


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

    @property
    def by_mpi(self) -> bool:
        """Say whether MPI connects the processes."""
        return self.launcher in (Launcher.OPEN_MPI, Launcher.PMI)

    def describe(self) -> str:
        """Return one line for logs."""
        found = ", ".join(
            f"{name}={getattr(self, name)} ({self.sources[name]})" for name in _NUMBERS
        )
        return f"started by {self.launcher}: {found}"


def detect_launch(environment: Mapping[str, str] | None = None) -> Launch:
    """Read the launcher's environment (default: `os.environ`); without one, this is a job of one process.

    Raises:
        ConfigError: when the variables are incomplete, not numbers, or contradict each other.
    """
    environment = os.environ if environment is None else environment
    found = [
        launcher
        for launcher, (rank, world_size, _) in _VARIABLES.items()
        # a batch script of Slurm has a rank, too, but is no task of a step
        if world_size in environment or (rank in environment and launcher is not Launcher.SLURM)
    ]
    if not found:
        assumed = "assumed: no launcher in the environment"
        return Launch(
            launcher=Launcher.PLAIN,
            rank=0,
            world_size=1,
            local_rank=0,
            sources=MappingProxyType(dict.fromkeys(_NUMBERS, assumed)),
        )
    _refuse_contradictions(environment, [one for one in found if one is not Launcher.SLURM])
    if found[0] is Launcher.TORCHRUN and len(found) > 1 and found[1] is not Launcher.SLURM:
        # both are there and agree: torch's variables count if they are all one needs
        found = found if all(name in environment for name in _REQUIRED) else found[1:]
    return _read(environment, found[0])


def _read(environment: Mapping[str, str], launcher: Launcher) -> Launch:
    names = _VARIABLES[launcher]
    required = _REQUIRED if launcher is Launcher.TORCHRUN else names[:2]
    missing = [name for name in required if name not in environment]
    if missing:
        present = [name for name in required if name in environment]
        way_out = (
            "start with torchrun, or unset RANK and WORLD_SIZE to run one process"
            if launcher is Launcher.TORCHRUN
            else "let the launcher set both"
        )
        raise ConfigError(
            f"the environment sets {', '.join(present)} but not {', '.join(missing)}; {way_out}"
        )
    rank, world_size = (_number(environment, name) for name in names[:2])
    if not 0 <= rank < world_size:
        raise ConfigError(
            f"{names[0]}={rank} does not fit {names[1]}={world_size}; expected 0 <= {names[0]} < {names[1]}"
        )
    local_rank, local_source = rank, f"assumed: same as {names[0]}, {names[2]} is not set"
    if names[2] in environment:
        local_rank, local_source = _number(environment, names[2]), names[2]
    return Launch(
        launcher=launcher,
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        sources=MappingProxyType(
            dict(zip(_NUMBERS, (names[0], names[1], local_source), strict=True))
        ),
    )


def _refuse_contradictions(environment: Mapping[str, str], launchers: "list[Launcher]") -> None:
    for position in (0, 1):
        names = [_VARIABLES[launcher][position] for launcher in launchers]
        values = {name: environment[name] for name in names if name in environment}
        if len(set(values.values())) > 1:
            shown = " but ".join(f"{name}={value}" for name, value in values.items())
            raise ConfigError(
                f"two launchers disagree: {shown}; do not start one inside the other, or unset the "
                "variables that are left from elsewhere"
            )


@contextmanager
def process_group(
    launch: Launch, timeout: timedelta, backend: Backend = "auto", *, on_gpu: bool = False
) -> Iterator[None]:
    """Open the default process group for the time of the block.

    `auto` is NCCL for workers `on_gpu`, with gloo for what they hold on the CPU; else mpi4py under mpirun
    where mpi4py is installed; else gloo. A group that is already open is used and left open. A job of one
    process gets a group of one that lives in memory and opens no port.
    After an exception a group on MPI leaves the end of the job to the launcher: no peer waits for this rank.

    Raises:
        CollectiveTimeout: not all ranks came; names those that are missing.
        ConfigError: the port is taken, gloo under srun without the address of rank 0,
            or mpi4py where the launcher has not started an MPI job.

    Collectives: the rendezvous of `init_process_group`.
    """
    if dist.is_initialized():
        yield
        return
    if backend == "auto":
        by_mpi = launch.by_mpi and find_spec("mpi4py")
        backend = "nccl" if on_gpu else "mpi4py" if by_mpi else "gloo"
    opened = "cpu:gloo,cuda:nccl" if backend == "nccl" else backend
    dist.init_process_group(opened, timeout=timeout, **_rendezvous(launch, backend, timeout))
    try:
        _require_same_job(launch)
        with transport_failures("a collective of the set-up"):
            yield
    except BaseException:
        if backend == "mpi4py":
            assert dist.group.WORLD is not None
            dist.group.WORLD.abort()
        raise
    finally:
        dist.destroy_process_group()


def _require_same_job(launch: Launch) -> None:
    rank, world_size = dist.get_rank(), dist.get_world_size()
    if (rank, world_size) != (launch.rank, launch.world_size):
        raise ConfigError(
            f"{launch.describe()}; but for MPI this is rank {rank} of {world_size}: the launcher has not "
            "told it; use mpirun, or srun with an --mpi= that this MPI library knows"
        )


def _rendezvous(launch: Launch, backend: str, timeout: timedelta) -> dict[str, Any]:
    """Return the arguments that let the ranks find each other."""
    if launch.by_mpi or backend == "mpi4py":
        import gsdist.collectives.mpi  # noqa: F401  registers the backend and mpi://

        return {"init_method": "mpi://"}
    numbers = {"rank": launch.rank, "world_size": launch.world_size}
    if launch.launcher is Launcher.PLAIN:
        return {"store": dist.HashStore(), **numbers}  # type: ignore[attr-defined]
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigError(
            f"{launch.describe()}, but {' and '.join(missing)} not set, so that gloo cannot find rank 0; "
            "set them, or use the backend mpi4py with srun --mpi=pmix"
        )
    return {"store": meet(launch.rank, launch.world_size, timeout), **numbers}


def _number(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except ValueError:
        raise ConfigError(
            f"{name}={environment[name]!r} is not a whole number; let the launcher set it"
        ) from None
