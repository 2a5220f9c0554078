"""The same collectives through bare mpi4py and through torch.distributed."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.distributed as dist
from mpi4py import MPI
from torch import Tensor

__all__ = ["BACKENDS", "BARE", "OPERATIONS", "buffers_of", "prepare"]

BARE = "bare-mpi4py"
BACKENDS = (BARE, "mpi4py", "gloo")
OPERATIONS = ("all_reduce", "broadcast", "all_gather", "reduce_scatter")


def buffers_of(operation: str, size: int, ranks: int) -> tuple[Tensor, Tensor]:
    """Return input and output; `size` is the bytes of the larger one, whose parts belong to the ranks."""
    numel = max(1, size // 4)
    part = max(1, numel // ranks)
    if operation == "all_gather":
        return torch.ones(part), torch.zeros(part * ranks)
    if operation == "reduce_scatter":
        return torch.ones(part * ranks), torch.zeros(part)
    whole = torch.ones(numel)
    return whole, whole


def prepare(
    backend: str, operation: str, group: dist.ProcessGroup, given: Tensor, output: Tensor
) -> Callable[[], object]:
    """Return a function that runs the collective once, on these buffers."""
    if backend == BARE:
        return _bare(operation, given, output)
    # from torch 2.14 on the older names take longer: they warn in every call
    all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
    reduce_scatter = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)
    calls: Mapping[str, Callable[[], object]] = MappingProxyType(
        {
            "all_reduce": lambda: dist.all_reduce(given, group=group),
            "broadcast": lambda: dist.broadcast(given, 0, group=group),
            "all_gather": lambda: all_gather(output, given, group=group),
            "reduce_scatter": lambda: reduce_scatter(output, given, group=group),
        }
    )
    return calls[operation]


def _bare(operation: str, given: Tensor, output: Tensor) -> Callable[[], object]:
    world = MPI.COMM_WORLD
    one, other = given.numpy(), output.numpy()
    calls: Mapping[str, Callable[[], object]] = MappingProxyType(
        {
            "all_reduce": lambda: world.Allreduce(MPI.IN_PLACE, one),
            "broadcast": lambda: world.Bcast(one, 0),
            "all_gather": lambda: world.Allgather(one, other),
            "reduce_scatter": lambda: world.Reduce_scatter_block(one, other),
        }
    )
    return calls[operation]
