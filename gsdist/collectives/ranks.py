"""Tell ranks within a group."""

import torch.distributed as dist

__all__ = ["rank_of"]


def rank_of(group: dist.ProcessGroup | None) -> int:
    """Return this worker's rank within a group; None is the default group.

    Unlike `torch.distributed.get_rank` it works for groups torch does not know, such as `LocalGroup`.
    """
    return dist.get_rank() if group is None else group.rank()
