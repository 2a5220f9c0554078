"""Sum tensors over a group and turn the backends' errors into gsdist's."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch import Tensor

from gsdist.collectives.ranks import rank_of
from gsdist.errors import CollectiveError

__all__ = ["all_reduce_sum", "start_all_reduce_sum", "translated"]


def all_reduce_sum(buffer: Tensor, group: dist.ProcessGroup | None, *, phase: str) -> None:
    """Sum `buffer` in place over all ranks of `group`; `phase` names the caller in errors.

    Raises:
        CollectiveError: the backend failed or its deadline passed; the buffer's content is then undefined.

    Collectives: one all-reduce.
    """
    with translated(buffer, group, phase):
        dist.all_reduce(buffer, group=group)


def start_all_reduce_sum(
    buffer: Tensor, group: dist.ProcessGroup | None, *, phase: str
) -> Callable[[], None]:
    """Start summing `buffer` in place; return a function that waits for it.

    Raises and issues the same as `all_reduce_sum`, the returned function included.
    """
    with translated(buffer, group, phase):
        work = dist.all_reduce(buffer, group=group, async_op=True)
    assert work is not None

    def wait() -> None:
        with translated(buffer, group, phase):
            work.wait()

    return wait


@contextmanager
def translated(buffer: Tensor, group: dist.ProcessGroup | None, phase: str) -> Iterator[None]:
    """Turn a backend's error about a collective on `buffer` into a `CollectiveError`."""
    try:
        yield
    except RuntimeError as error:
        raise CollectiveError(
            f"rank {rank_of(group)}/{dist.get_world_size(group)}: {phase} failed on "
            f"{buffer.numel()} x {buffer.dtype} ({error}); a peer has left or is stuck, look at the "
            "first error among all ranks"
        ) from error
