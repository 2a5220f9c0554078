"""Gather rows from all workers, so that a loss can compare images of the whole batch."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn import functional

__all__ = ["first_row", "gather_rows"]


def gather_rows(own: Tensor) -> Tensor:
    """Return the rows of all ranks, in rank order: `(N, ...)` becomes `(P * N, ...)`.

    The backward pass gives every rank the sum, over all ranks, of the gradients of its rows. When each
    rank's loss is the mean over its own rows, the mean of all ranks' parameter gradients is then the
    gradient of the whole batch. Outside a process group, and with one rank, it is the tensor itself.

    Collectives: one all-gather; in the backward pass, for a tensor that requires a gradient, one
    all-to-all.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return own
    return torch.cat(functional.all_gather(own.contiguous()))  # type: ignore[no-untyped-call]


def first_row(own: Tensor) -> int:
    """Return where this rank's rows begin among those of all ranks."""
    return dist.get_rank() * len(own) if dist.is_initialized() else 0
