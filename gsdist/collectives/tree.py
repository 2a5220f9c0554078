"""Sum a tensor over a group along a binomial tree: 2 ceil(log2 P) messages deep, for any P.

The backends' own all-reduce is a ring (or better): less to send, P times as many steps. A tree pays where
latency dominates: small buffers, many workers.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from gsdist.collectives.point_to_point import receive_from, send_to
from gsdist.collectives.ranks import rank_of

__all__ = ["tree_all_reduce_sum"]


def tree_all_reduce_sum(buffer: Tensor, group: dist.ProcessGroup | None, *, phase: str) -> None:
    """Sum `buffer` in place over all ranks of `group`; all ranks end with the same bits.

    Raises:
        CollectiveError: the backend failed or its deadline passed; the buffer's content is then undefined.

    Collectives: point-to-point messages of the buffer's size; rank 0 receives and sends ceil(log2 P) of them.
    """
    rank, world_size = rank_of(group), dist.get_world_size(group)
    received = torch.empty_like(buffer)
    distance = 1
    while distance < world_size and rank % (2 * distance) == 0:
        if rank + distance < world_size:
            receive_from(rank + distance, received, group, phase=phase)
            buffer.add_(received)
        distance *= 2
    if rank != 0:
        parent = rank - (rank & -rank)
        send_to(parent, buffer, group, phase=phase)
        receive_from(parent, buffer, group, phase=phase)
    while distance > 1:
        distance //= 2
        if rank + distance < world_size:
            send_to(rank + distance, buffer, group, phase=phase)
