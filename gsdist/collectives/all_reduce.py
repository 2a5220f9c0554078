"""Sum a tensor over a group and turn the backends' errors into gsdist's."""

import torch.distributed as dist
from torch import Tensor

from gsdist.errors import CollectiveError

__all__ = ["all_reduce_sum"]


def all_reduce_sum(buffer: Tensor, group: dist.ProcessGroup | None, *, phase: str) -> None:
    """Sum `buffer` in place over all ranks of `group`; `phase` names the caller in errors.

    Raises:
        CollectiveError: the backend failed or its deadline passed. The buffer's content is then undefined.

    Collectives: one all-reduce.
    """
    try:
        dist.all_reduce(buffer, group=group)
    except RuntimeError as error:
        raise CollectiveError(
            f"rank {dist.get_rank(group)}/{dist.get_world_size(group)}: {phase} failed on "
            f"{buffer.numel()} x {buffer.dtype} ({error}); a peer has left or is stuck, look at the first "
            "error among all ranks"
        ) from error
