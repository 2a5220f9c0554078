"""Run torch.distributed on MPI with stock PyTorch wheels: the backend `mpi4py`.

    import gsdist.collectives.mpi
    torch.distributed.init_process_group("mpi4py")  # under mpirun; nothing else to set

Importing this package registers the backend and the rendezvous `mpi://`; MPI itself is started with the first
process group. `init_process_group` uses that rendezvous by itself, for any backend, where torch's own
variables (RANK and so on) are not set.
"""

from typing import TYPE_CHECKING

import torch.distributed as dist
from torch._C._distributed_c10d import _DistributedBackendOptions

from gsdist.collectives.mpi.rendezvous import register_rendezvous
from gsdist.errors import UnsupportedSetup

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

    from gsdist.collectives.mpi.process_group import MpiProcessGroup

__all__ = ["BACKEND", "use_communicator"]

BACKEND = "mpi4py"
"""The name to give to `init_process_group`."""


def use_communicator(communicator: "Intracomm") -> None:
    """Put all process groups of this process on an existing communicator in place of MPI.COMM_WORLD.

    The ranks are the communicator's. It is duplicated and never freed.

    Raises:
        ConfigError: a process group exists already.
        UnsupportedSetup: MPI was started in a way that lets only the main thread call it.
    """
    from gsdist.collectives.mpi.runtime import Runtime

    Runtime.start(communicator)


def _create(options: _DistributedBackendOptions, _: object) -> "MpiProcessGroup":
    try:
        from gsdist.collectives.mpi.process_group import MpiProcessGroup
    except ImportError as error:
        raise UnsupportedSetup(
            f"the backend {BACKEND!r} cannot load MPI ({error}); pip install 'gsdist[mpi]', or mpi4py "
            "alone where an MPI library is installed"
        ) from error
    return MpiProcessGroup(options)


dist.Backend.register_backend(BACKEND, _create, extended_api=True, devices=["cpu", "cuda"])
register_rendezvous()
