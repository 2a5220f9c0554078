"""Start an MPI job whose ranks are the hosts of a network lab."""

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.environment import ROOT
from benchmarks.mpirun import OPEN_MPI_SETTINGS
from benchmarks.netlab import LabRun, NetworkLab
from benchmarks.netlab.settings import INTERFACE

__all__ = ["run_in_lab"]

_LAUNCHER_VARIABLES = "RANK WORLD_SIZE LOCAL_RANK GROUP_RANK LOCAL_WORLD_SIZE GROUP_WORLD_SIZE"
_SHARED_CORES = {"OMPI_MCA_mpi_yield_when_idle": "1"}
"""Open MPI takes the hosts for machines of their own; ranks that wait must not keep others off the cores."""
# Called as `agent HOST COMMAND` in place of ssh. Every host gets its address for a name: Open MPI tells hosts
# apart by their names, and ranks must be able to find rank 0 by its own.
_AGENT = """#!/bin/sh
host=$1; shift
own=$(ip netns identify $$)
rank=$(( ${host##*.} - 1 ))
exec ip netns exec "${own%-rank*}-rank$rank" unshare --uts sh -c "hostname $host; $*"
"""


def run_in_lab(
    lab: NetworkLab, launcher: str, command: Sequence[str], folder: Path, *, timeout: float
) -> LabRun:
    """Run `mpirun python COMMAND` from the first host of an open lab, with one rank on every host.

    Needs Open MPI. Nothing but TCP over the shaped links connects the ranks.
    """
    agent = folder / "agent.sh"
    agent.write_text(_AGENT)
    agent.chmod(0o755)
    addresses = [lab.settings.address(rank) for rank in range(lab.settings.ranks)]
    mpirun = [
        *(launcher, "-n", str(len(addresses)), "--map-by", "ppr:1:node"),
        *("--host", ",".join(addresses), "--prtemca", "plm_ssh_agent", str(agent)),
        *("--prtemca", "prte_if_include", INTERFACE, "--mca", "pml", "ob1"),
        *("--mca", "btl", "tcp,self", "--mca", "btl_tcp_if_include", INTERFACE),
        *(
            "-x",
            "GLOO_SOCKET_IFNAME",
            "-x",
            "PYTHONPATH",
            "-x",
            "OMPI_MCA_mpi_yield_when_idle",
            sys.executable,
            *command,
        ),
    ]
    # the lab starts one process per host; the first one's mpirun starts the others again
    script = (
        f'[ "$RANK" = 0 ] || exit 0; unset {_LAUNCHER_VARIABLES} MASTER_ADDR MASTER_PORT; '
        f'hostname {addresses[0]}; exec "$@"'
    )
    return lab.run(
        ["unshare", "--uts", "sh", "-c", script, "sh", *mpirun],
        timeout=timeout,
        environment={**OPEN_MPI_SETTINGS, **_SHARED_CORES, "PYTHONPATH": str(ROOT)},
    )
