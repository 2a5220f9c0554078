"""Follow an operation from the caller's side."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from mpi4py import MPI
from torch import Tensor
from torch.futures import Future

from gsdist.collectives.mpi.roll_call import RollCall
from gsdist.collectives.mpi.staging import Staging
from gsdist.collectives.mpi.watchdog import WATCHDOG
from gsdist.errors import CollectiveError

__all__ = ["MpiWork"]

# What is chained to a future may issue operations and wait for them, so it must not run on the thread that
# completes them; and one that waits must not keep others from running.
_CHAINED = ThreadPoolExecutor(max_workers=64, thread_name_prefix="gsdist-mpi-future")
_FUTURES = threading.Lock()
"""Held while an operation ends or gets its future, so that one of both settles it."""


class MpiWork(dist.Work):
    """Be one operation, handed in to a communication thread."""

    _ended = False
    _error: CollectiveError | None = None
    _future: Future[Any] | None = None
    _source = MPI.UNDEFINED

    def __init__(
        self,
        describe: Callable[[], str],
        *,
        start: Callable[[], Sequence[MPI.Request]],
        staging: Staging,
        outputs: list[Any],
        timeout: float,
        roll_call: RollCall,
        number: int | None,
    ) -> None:
        """Keep what belongs to the operation.

        Args:
            describe: says rank, name and number, for errors.
            start: does it, or begins it and returns what to wait for.
            staging: brings the results to where they belong.
            outputs: the value of its future.
            timeout: seconds from now until the job is ended.
            roll_call: finds out who is missing.
            number: counts the collectives of the group; None for an operation that is not everybody's.
        """
        super().__init__()
        self._describe = describe
        self._start = start
        self._staging = staging
        self._outputs = outputs
        # a bare lock, held until the operation is complete: an Event costs as much as a short message
        self._under_way = threading.Lock()
        self._under_way.acquire()
        self._roll_call = roll_call
        self._number = number
        WATCHDOG.watch(self, timeout)

    # ---- what the thread that runs it calls ---------------------------------------------------------

    def start(self) -> Sequence[MPI.Request]:
        """Do or begin the operation."""
        self._staging.wait_for_device()
        return self._start()

    def finish(self, statuses: Sequence[MPI.Status]) -> None:
        """Deliver the results and wake who waits."""
        self._staging.deliver()
        if statuses:
            self._source = statuses[0].source
        self._end()

    def fail(self, error: Exception) -> None:
        """Let whoever waits raise an error."""
        self._error = CollectiveError(
            f"{self.description} failed: {error}; a peer has left, or gave another size or dtype"
        )
        self._error.__cause__ = error
        self._end()

    def _end(self) -> None:
        WATCHDOG.forget(self)
        # buffers may be large, and the caller may keep this object
        del self._start, self._staging
        with _FUTURES:
            self._ended = True
            future = self._future
        self._under_way.release()
        if future is not None:
            _CHAINED.submit(self._settle, future)

    def _settle(self, future: Future[Any]) -> None:
        if self._error is None:
            future.set_result(self._outputs)
        else:
            future.set_exception(self._error)

    # ---- what the watchdog calls --------------------------------------------------------------------

    @property
    def description(self) -> str:
        """Say rank, name and number."""
        return self._describe()

    def answer_roll_call(self) -> None:
        """Tell a rank that asks that this one has come to the operation."""
        if self._number is not None:
            self._roll_call.answer(self._number)

    def call_roll(self) -> list[int]:
        """Return the ranks that have not come to the operation, as far as that can be known."""
        return [] if self._number is None else self._roll_call.absentees(self._number)

    # ---- what users and torch call ------------------------------------------------------------------

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Wait until the operation is complete, at most `timeout` if that is not zero.

        Raises:
            CollectiveError: it failed, or is still running after the timeout.
        """
        if not self._ended:
            if not self._under_way.acquire(timeout=timeout.total_seconds() if timeout else -1):
                raise CollectiveError(f"{self.description} is still running after {timeout}")
            self._under_way.release()
        if self._error is not None:
            raise self._error
        return True

    def synchronize(self) -> None:
        """Wait until the operation is complete."""
        self.wait()

    def is_completed(self) -> bool:
        """Say whether the operation has ended, well or not."""
        return self._ended

    def is_success(self) -> bool:
        """Say whether the operation has ended well."""
        return self._ended and self._error is None

    def exception(self) -> CollectiveError | None:
        """Return why the operation failed."""
        return self._error

    def get_future(self) -> Future[Any]:
        """Return a future of the output tensors."""
        with _FUTURES:
            if self._future is None:
                devices = {tensor.device for tensor in _flat(self._outputs) if tensor.is_cuda}
                self._future = Future(devices=list(devices))
                settled = self._ended
            else:
                settled = False
        if settled:
            self._settle(self._future)
        return self._future

    def _source_rank(self) -> int:
        """Return the rank within the group that a received message came from."""
        return self._source

    source_rank = _source_rank


def _flat(outputs: Sequence[Any]) -> list[Tensor]:
    return [
        tensor
        for item in outputs
        for tensor in (item if isinstance(item, list | tuple) else [item])
    ]
