"""Give MPI a thread of its own, which runs operations in the order they were handed in."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Generic, Protocol, TypeVar

from mpi4py import MPI

__all__ = ["CommunicationThread", "Operation"]

Result = TypeVar("Result")
_BUSY_POLLS = 1000
_LONGEST_PAUSE = 1e-3


class Operation(Protocol):
    """Be what the thread can run."""

    def start(self) -> Sequence[MPI.Request]:
        """Do it, or begin it and return what to wait for."""

    def finish(self, statuses: Sequence[MPI.Status]) -> None:
        """Take note that all requests are complete; one status for each."""

    def fail(self, error: Exception) -> None:
        """Take note that `start`, a request or `finish` raised an exception."""


class CommunicationThread:
    """Run operations in order, one at a time.

    An operation whose `start` leaves requests behind does not hold up the next one: a message that was
    asked for early may arrive late.
    """

    def __init__(self, name: str) -> None:
        self._queue: SimpleQueue[Operation | None] = SimpleQueue()
        self._pending: deque[tuple[Operation, list[MPI.Request]]] = deque()
        self._stopping = False
        self._unfinished = 0
        self._count = threading.Lock()
        self._turn = threading.Lock()
        # a daemon: an interpreter that ends must not wait for peers that are gone
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def submit(self, operation: Operation) -> None:
        """Hand an operation in."""
        with self._count:
            self._unfinished += 1
            self._queue.put(operation)

    def run(self, operation: Operation) -> None:
        """Run an operation on the calling thread if nothing is under way; hand it in otherwise."""
        with self._count:
            idle = self._unfinished == 0
            self._unfinished += 1
            if idle:
                self._turn.acquire()  # before anybody can hand in another one
            else:
                self._queue.put(operation)
        if idle:
            try:
                self._start(operation)
            finally:
                self._turn.release()

    def call(self, function: Callable[[], Result], timeout: float | None = None) -> Result:
        """Run a function on the thread, after what was handed in before, and return its result.

        Raises:
            TimeoutError: it did not return within `timeout` seconds; it is still running.
        """
        call = _Call(function)
        self.submit(call)
        return call.outcome.result(timeout)

    def stop(self) -> None:
        """Let the thread end once everything is complete."""
        self._queue.put(None)

    def _run(self) -> None:
        idle_polls = 0
        while not self._stopping or self._pending:
            idle_polls = 0 if self._advance(idle_polls) else idle_polls + 1

    def _advance(self, idle_polls: int) -> bool:
        """Start the next operation and finish those that are complete; return whether there were any."""
        try:
            operation = self._next(idle_polls)
        except Empty:
            return self._complete()
        if operation is None:
            self._stopping = True
        else:
            with self._turn:
                self._start(operation)
        self._complete()
        return True

    def _next(self, idle_polls: int) -> Operation | None:
        if not self._pending:
            return self._queue.get()
        if idle_polls < _BUSY_POLLS:
            return self._queue.get_nowait()
        # What takes long gets polled less often, up to a thousand times a second.
        return self._queue.get(timeout=min(_LONGEST_PAUSE, 1e-6 * (idle_polls - _BUSY_POLLS)))

    def _start(self, operation: Operation) -> None:
        try:
            requests = list(operation.start())
            if not requests:
                operation.finish(())
        except Exception as error:
            operation.fail(error)
        else:
            if requests:
                self._pending.append((operation, requests))
                return
        self._ended()

    def _complete(self) -> bool:
        """Finish pending operations that are complete; return whether there were any."""
        before = len(self._pending)
        for _ in range(before):
            operation, requests = self._pending.popleft()
            statuses: list[MPI.Status] = []
            try:
                if not MPI.Request.Testall(requests, statuses):
                    self._pending.append((operation, requests))
                    continue
                operation.finish(statuses)
            except Exception as error:
                operation.fail(error)
            self._ended()
        return len(self._pending) < before

    def _ended(self) -> None:
        with self._count:
            self._unfinished -= 1


class _Call(Generic[Result]):
    """Be an operation that calls a function and keeps what comes of it."""

    def __init__(self, function: Callable[[], Result]) -> None:
        self._function = function
        self.outcome: Future[Result] = Future()

    def start(self) -> Sequence[MPI.Request]:
        self.outcome.set_result(self._function())
        return ()

    def finish(self, statuses: Sequence[MPI.Status]) -> None:
        pass

    def fail(self, error: Exception) -> None:
        self.outcome.set_exception(error)
