"""Gather equally long tensors."""

import torch
import torch.distributed as dist
from torch import Tensor

from gsdist.collectives.guard import guarded

__all__ = ["all_gather_equal"]


def all_gather_equal(own: Tensor, group: dist.ProcessGroup | None, *, phase: str) -> Tensor:
    """Gather a 1-D tensor of the same length from every rank, as rows of a (ranks, length) tensor.

    Raises:
        CollectiveError: the backend failed or its deadline passed.

    Collectives: one all-gather.
    """
    world_size = dist.get_world_size(group)
    gathered = torch.empty((world_size, own.numel()), dtype=own.dtype, device=own.device)
    with guarded(own, group, phase):
        dist.all_gather(list(gathered.unbind(0)), own, group=group)
    return gathered
