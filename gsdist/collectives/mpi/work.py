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
from gsdist.collectives.mpi.watchdog import WATCHDOG
from gsdist.errors import CollectiveError

__all__ = ["MpiWork"]

# What is chained to a future may issue operations and wait for them, so it must not run on the thread that
# completes them; and one that waits must not keep others from running.
_CHAINED = ThreadPoolExecutor(max_workers=64, thread_name_prefix="gsdist-mpi-future")


class MpiWork(dist.Work):
    """Be one operation, handed in to a communication thread."""

    def __init__(
        self,
        description: str,
        *,
        start: Callable[[], Sequence[MPI.Request]],
        finish: Callable[[], None],
        outputs: list[Any],
        timeout: float,
        roll_call: RollCall | None,
        number: int,
    ) -> None:
        """Keep what belongs to the operation.

        Args:
            description: rank, name and number, for errors.
            start: does it, or begins it and returns what to wait for.
            finish: brings the results to where they belong.
            outputs: the value of its future.
            timeout: seconds from now until the job is ended.
            roll_call: finds out who is missing; None for an operation that is not everybody's.
            number: counts the collectives of the group.
        """
        super().__init__()
        self.description = description
        self._start = start
        self._finish = finish
        self._outputs = outputs
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._future: Future[Any] | None = None
        self._error: CollectiveError | None = None
        self._source = MPI.UNDEFINED
        self._roll_call = roll_call
        self._number = number
        WATCHDOG.watch(self, timeout)

    # ---- what the communication thread calls --------------------------------------------------------

    def start(self) -> Sequence[MPI.Request]:
        """Do or begin the operation."""
        return self._start()

    def finish(self, statuses: Sequence[MPI.Status]) -> None:
        """Deliver the results and wake who waits."""
        self._finish()
        self._source = statuses[0].source if statuses else MPI.UNDEFINED
        self._complete()

    def fail(self, error: Exception) -> None:
        """Let whoever waits raise an error."""
        self._error = CollectiveError(
            f"{self.description} failed: {error}; a peer has left, or gave another size or dtype"
        )
        self._error.__cause__ = error
        self._complete()

    def _complete(self) -> None:
        WATCHDOG.forget(self)
        with self._lock:
            self._done.set()
            future = self._future
        # buffers may be large, and the caller may keep this object
        del self._start, self._finish
        if future is not None:
            _CHAINED.submit(self._settle, future)

    def _settle(self, future: Future[Any]) -> None:
        if self._error is None:
            future.set_result(self._outputs)
        else:
            future.set_exception(self._error)

    # ---- what the watchdog calls --------------------------------------------------------------------

    def answer_roll_call(self) -> None:
        """Tell a rank that asks that this one has come to the operation."""
        if self._roll_call is not None:
            self._roll_call.answer(self._number)

    def call_roll(self) -> list[int]:
        """Return the ranks that have not come to the operation, as far as that can be known."""
        return self._roll_call.absentees(self._number) if self._roll_call is not None else []

    # ---- what users and torch call ------------------------------------------------------------------

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Wait until the operation is complete, at most `timeout` if that is not zero.

        Raises:
            CollectiveError: it failed, or is still running after the timeout.
        """
        if not self._done.wait(timeout.total_seconds() if timeout else None):
            raise CollectiveError(f"{self.description} is still running after {timeout}")
        if self._error is not None:
            raise self._error
        return True

    def synchronize(self) -> None:
        """Wait until the operation is complete."""
        self.wait()

    def is_completed(self) -> bool:
        """Say whether the operation has ended, well or not."""
        return self._done.is_set()

    def is_success(self) -> bool:
        """Say whether the operation has ended well."""
        return self._done.is_set() and self._error is None

    def exception(self) -> CollectiveError | None:
        """Return why the operation failed."""
        return self._error

    def get_future(self) -> Future[Any]:
        """Return a future of the output tensors."""
        with self._lock:
            if self._future is None:
                devices = {tensor.device for tensor in _flat(self._outputs) if tensor.is_cuda}
                self._future = Future(devices=list(devices))
                settled = self._done.is_set()
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
