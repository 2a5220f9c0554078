"""Be many workers in one process: process groups whose ranks are threads.

They serve to see what an exchange method does at 64 workers on one machine, and take the place of a
torch.distributed group in everything of gsdist.collectives and gsdist.reducers. Nothing crosses a network
and nothing runs faster: threads take turns.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from queue import Queue
from threading import Barrier
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["LocalGroup", "run_together"]

Result = TypeVar("Result")


class _Meeting:
    """Let the threads of a group pass each other values."""

    def __init__(self, size: int, timeout: float) -> None:
        self.timeout = timeout
        self.barrier = Barrier(size, timeout=timeout)
        self.slots: list[Any] = [None] * size
        self.queues: dict[tuple[int, int], Queue[Tensor]] = {
            (source, target): Queue() for source in range(size) for target in range(size)
        }


class _Done(dist.Work):
    """Stand for an operation that is already complete."""

    def wait(self, timeout: object = None) -> bool:
        return True


class LocalGroup(dist.ProcessGroup):
    """Act for one rank of a group of threads; operations are complete when they return.

    Supports what gsdist needs: sums, all-gather, broadcast, gather, send and receive of CPU tensors. Sums are
    made in rank order in the tensors' own dtype.
    """

    def __init__(self, rank: int, size: int, meeting: _Meeting) -> None:
        super().__init__(rank, size)  # type: ignore[call-arg]
        self._meeting = meeting

    @classmethod
    def create(cls, size: int, *, timeout: float = 300.0) -> "list[LocalGroup]":
        """Return the ranks of a new group; a rank waits at most `timeout` seconds for the others."""
        meeting = _Meeting(size, timeout)
        return [cls(rank, size, meeting) for rank in range(size)]

    def abort(self) -> None:
        """Make all ranks that wait, or will wait, fail with an error."""
        self._meeting.barrier.abort()

    def allreduce(  # type: ignore[override]
        self, tensors: Sequence[Tensor], opts: Any = None
    ) -> dist.Work:
        """Sum in place."""
        self._require_sum(opts)
        (tensor,) = tensors
        everyone = self._share(tensor)
        if self.rank() == 0:
            total = everyone[0].clone()
            for other in everyone[1:]:
                total += other
            self._meeting.slots[0] = total
        self._meeting.barrier.wait()
        tensor.copy_(self._meeting.slots[0])
        self._meeting.barrier.wait()
        return _Done()

    def allgather(  # type: ignore[override]
        self, outputs: Sequence[Sequence[Tensor]], inputs: Sequence[Tensor], opts: Any = None
    ) -> dist.Work:
        """Copy every rank's tensor into the list of outputs."""
        for output, value in zip(outputs[0], self._share(inputs[0]), strict=True):
            output.copy_(value)
        self._meeting.barrier.wait()
        return _Done()

    def broadcast(  # type: ignore[override]
        self, tensors: Sequence[Tensor], opts: Any
    ) -> dist.Work:
        """Copy the root's tensor."""
        everyone = self._share(tensors[0])
        if self.rank() != opts.rootRank:
            tensors[0].copy_(everyone[opts.rootRank])
        self._meeting.barrier.wait()
        return _Done()

    def gather(  # type: ignore[override]
        self, outputs: Sequence[Sequence[Tensor]], inputs: Sequence[Tensor], opts: Any
    ) -> dist.Work:
        """Copy every rank's tensor into the root's list of outputs."""
        everyone = self._share(inputs[0])
        if self.rank() == opts.rootRank:
            for output, value in zip(outputs[0], everyone, strict=True):
                output.copy_(value)
        self._meeting.barrier.wait()
        return _Done()

    def send(self, tensors: Sequence[Tensor], target: int, tag: int = 0) -> dist.Work:
        """Send a copy to one rank."""
        self._meeting.queues[self.rank(), target].put(tensors[0].clone())
        return _Done()

    def recv(self, tensors: Sequence[Tensor], source: int, tag: int = 0) -> dist.Work:
        """Receive the oldest tensor that a rank has sent."""
        queue = self._meeting.queues[source, self.rank()]
        tensors[0].copy_(queue.get(timeout=self._meeting.timeout))
        return _Done()

    def _share(self, value: Tensor) -> list[Tensor]:
        """Return every rank's tensor itself; a barrier must follow before anyone changes theirs."""
        self._meeting.slots[self.rank()] = value
        self._meeting.barrier.wait()
        everyone = list(self._meeting.slots)
        self._meeting.barrier.wait()
        return everyone

    @staticmethod
    def _require_sum(opts: Any) -> None:
        assert opts is None or opts.reduceOp == dist.ReduceOp.SUM, "LocalGroup only sums"


def run_together(
    groups: Sequence[LocalGroup], function: Callable[[LocalGroup], Result]
) -> list[Result]:
    """Call a function on every rank, each in a thread of its own; return the results in rank order.

    The first exception of any rank is raised once all ranks have stopped; the group cannot be used again.
    """

    def rank_main(group: LocalGroup) -> Result:
        # Hundreds of OpenMP pools on one machine would only get into each other's way.
        torch.set_num_threads(1)
        return function(group)

    with ThreadPoolExecutor(max_workers=len(groups)) as threads:
        futures = [threads.submit(rank_main, group) for group in groups]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        failed = [future for future in done if future.exception() is not None]
        if failed:
            groups[0].abort()
            raise failed[0].exception()  # type: ignore[misc]
    return [future.result() for future in futures]
