"""Send tensors between single ranks of a group; ranks are counted within the group.

gloo sums and broadcasts what is on a GPU, but sends only what is on the CPU: there a copy travels.
"""

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from gsdist.collectives.guard import guarded
from gsdist.collectives.ranks import rank_of

__all__ = ["all_to_all", "broadcast_from", "gather_to", "receive_from", "send_to"]


def send_to(rank: int, buffer: Tensor, group: dist.ProcessGroup | None, *, phase: str) -> None:
    """Send a tensor to one rank.

    Raises:
        CollectiveError: the backend failed or its deadline passed.

    Collectives: one point-to-point message.
    """
    with guarded(buffer, group, phase):
        _start_sending(buffer, rank, group).wait()


def receive_from(rank: int, buffer: Tensor, group: dist.ProcessGroup | None, *, phase: str) -> None:
    """Receive a tensor of the buffer's length and dtype from one rank.

    Raises and issues the same as `send_to`.
    """
    with guarded(buffer, group, phase):
        _receive(buffer, rank, group)


def broadcast_from(
    rank: int, buffer: Tensor, group: dist.ProcessGroup | None, *, phase: str
) -> None:
    """Send one rank's tensor to all others, into a buffer of equal length and dtype.

    Raises:
        CollectiveError: the backend failed or its deadline passed.

    Collectives: one broadcast.
    """
    with guarded(buffer, group, phase):
        dist.broadcast(buffer, group=group, group_src=rank)


def gather_to(
    rank: int, buffer: Tensor, group: dist.ProcessGroup | None, *, phase: str
) -> list[Tensor]:
    """Gather equally long tensors at one rank, in rank order; the others get an empty list.

    Raises:
        CollectiveError: the backend failed or its deadline passed.

    Collectives: one gather.
    """
    receives = rank_of(group) == rank
    travelling = _travelling(buffer, group)
    gathered = (
        [torch.empty_like(travelling) for _ in range(dist.get_world_size(group))]
        if receives
        else []
    )
    with guarded(buffer, group, phase):
        dist.gather(travelling, gathered or None, group=group, group_dst=rank)
    return [part.to(buffer.device) for part in gathered]


def all_to_all(
    parts: Sequence[Tensor],
    lengths: Sequence[int],
    group: dist.ProcessGroup | None,
    *,
    phase: str,
) -> list[Tensor]:
    """Send `parts[j]` to every rank j; return what every rank i has sent, `lengths[i]` elements.

    Parts are 1-D, of one dtype; empty ones are not sent, and a rank's own is returned as it is.

    Raises:
        CollectiveError: the backend failed or its deadline passed.

    Collectives: at most P - 1 point-to-point messages out and in, in rounds in which no two ranks send to
    the same one. In each cycle of a round one rank receives first, as NCCL's messages wait for each other.
    """
    rank, world_size = rank_of(group), dist.get_world_size(group)
    received = [parts[rank].new_empty(length) for length in lengths]
    received[rank] = parts[rank]
    for distance in range(1, world_size):
        target, source = (rank + distance) % world_size, (rank - distance) % world_size
        receives_first = rank < math.gcd(distance, world_size)
        with guarded(parts[target], group, phase):
            sending = None
            if len(parts[target]) and not receives_first:
                sending = _start_sending(parts[target], target, group)
            if lengths[source]:
                _receive(received[source], source, group)
            if len(parts[target]) and receives_first:
                sending = _start_sending(parts[target], target, group)
            if sending is not None:
                sending.wait()
    return received


def _start_sending(buffer: Tensor, rank: int, group: dist.ProcessGroup | None) -> dist.Work:
    return _resolve(group).send([_travelling(buffer, group)], rank, 0)


def _receive(buffer: Tensor, rank: int, group: dist.ProcessGroup | None) -> None:
    travelling = _travelling(buffer, group)
    _resolve(group).recv([travelling], rank, 0).wait()
    if travelling is not buffer:
        buffer.copy_(travelling)


def _travelling(buffer: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Return the buffer, or a copy on the CPU if the group can send no other."""
    return buffer.cpu() if buffer.is_cuda and dist.get_backend(group) == "gloo" else buffer


def _resolve(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    # dist.recv looks its group up in torch's registry, where a LocalGroup is not.
    resolved = dist.group.WORLD if group is None else group
    assert resolved is not None, "the default process group is not initialised"
    return resolved
