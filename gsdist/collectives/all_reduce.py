"""Sum tensors over a group."""

from collections.abc import Callable

import torch.distributed as dist
from torch import Tensor

from gsdist.collectives.guard import guarded

__all__ = ["all_reduce_sum", "start_all_reduce_sum"]


def all_reduce_sum(buffer: Tensor, group: dist.ProcessGroup | None, *, phase: str) -> None:
    """Sum `buffer` in place over all ranks of `group`; `phase` names the caller in errors.

    Raises:
        CollectiveError: the backend failed or its deadline passed; the buffer's content is then undefined.

    Collectives: one all-reduce.
    """
    with guarded(buffer, group, phase):
        dist.all_reduce(buffer, group=group)


def start_all_reduce_sum(
    buffer: Tensor, group: dist.ProcessGroup | None, *, phase: str
) -> Callable[[], None]:
    """Start summing `buffer` in place; return a function that waits for it.

    Raises and issues the same as `all_reduce_sum`, the returned function included.
    """
    with guarded(buffer, group, phase):
        work = dist.all_reduce(buffer, group=group, async_op=True)
    assert work is not None

    def wait() -> None:
        with guarded(buffer, group, phase):
            work.wait()

    return wait
