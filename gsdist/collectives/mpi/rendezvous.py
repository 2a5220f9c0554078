"""Let the ranks of an MPI job find each other without addresses and ports in the environment.

torch keeps a key-value store beside every process group: NCCL and gloo meet there, and so do the members of
`new_group`. Rank 0 serves it on a free port, and MPI tells the others where.
"""

import importlib
import os
import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from torch._C._distributed_c10d import Store, TCPStore

from gsdist.errors import UnsupportedSetup

__all__ = ["register_rendezvous"]

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_TIMEOUT = timedelta(minutes=5)


def register_rendezvous() -> None:
    """Make `mpi://` known to `init_process_group`, and the default where torch's variables are not set."""
    rendezvous = importlib.import_module("torch.distributed.rendezvous")
    rendezvous.register_rendezvous_handler("mpi", _meet)
    # torch offers no way to change what no init_method means, so its own handler is wrapped
    handlers = rendezvous._rendezvous_handlers
    by_environment = handlers["env"]

    def meet_by_environment_or_mpi(url: str, **options: Any) -> Any:
        told = "?" in url or any(name in os.environ for name in _VARIABLES)
        return (by_environment if told else _meet)(url, **options)

    handlers["env"] = meet_by_environment_or_mpi


def _meet(url: str, timeout: timedelta = _TIMEOUT, **_: Any) -> Iterator[tuple[Store, int, int]]:
    """Yield a store that all ranks share, the rank and the number of ranks; torch's form of a rendezvous."""
    try:
        from gsdist.collectives.mpi.runtime import Runtime
    except ImportError as error:
        raise UnsupportedSetup(
            f"{url} needs MPI, which cannot be loaded ({error}); pip install 'gsdist[mpi]', or set "
            f"{', '.join(_VARIABLES)}"
        ) from error
    runtime = Runtime.start()
    rank, size = runtime.rank, runtime.size
    served = None
    if rank == 0:
        served = TCPStore(
            _own_address(), 0, size, is_master=True, timeout=timeout, wait_for_workers=False
        )
    address = (served.host, served.port) if served else None
    host, port = runtime.call(
        lambda: runtime.communicator.bcast(address), "finding rank 0", timeout.total_seconds()
    )
    yield served or TCPStore(host, port, size, is_master=False, timeout=timeout), rank, size


def _own_address() -> str:
    name = socket.gethostname()
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        return "localhost"
    return name
