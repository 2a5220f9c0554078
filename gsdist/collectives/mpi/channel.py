"""Hand the operations of one communicator to MPI: on which thread, in which order, until when."""

from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, Protocol

from mpi4py import MPI
from torch import Tensor
from torch._C._distributed_c10d import Store

from gsdist.collectives.mpi.roll_call import RollCall
from gsdist.collectives.mpi.runtime import Runtime
from gsdist.collectives.mpi.staging import Staging
from gsdist.collectives.mpi.work import MpiWork
from gsdist.errors import ConfigError

__all__ = ["Channel", "Options"]

_NO_TIME = timedelta(0)


class Options(Protocol):
    """Say what c10d's options say of every collective."""

    timeout: timedelta
    """Its deadline; zero and less stand for the group's."""
    asyncOp: bool
    """Whether the caller goes on meanwhile; if not, it waits as soon as it has the work object."""


class Channel:
    """Be one rank's end of a communicator.

    Operations are handed in at once and run in order: on the group's communication thread, or at once where
    the caller waits anyway and nothing else is under way.
    """

    def __init__(
        self,
        ranks: Sequence[int],
        *,
        name: str,
        rank: int,
        size: int,
        timeout: timedelta,
        store: Store,
    ) -> None:
        """Make the communicator of some ranks (none means all); on all of them at the same time.

        The store of the group serves to name missing ranks.

        Raises:
            CollectiveError: not all of them came within the timeout.
            ConfigError: MPI counts the ranks of the job otherwise.
        """
        self._runtime = Runtime.start()
        self._name = name
        self.timeout = timeout
        self.communicator, *found = self._runtime.communicator_of(
            ranks, name, timeout.total_seconds()
        )
        if found != [rank, size]:
            raise ConfigError(
                f"rank {rank} of {size} is asked for, but MPI says rank {found[0]} of {found[1]}; start one "
                "process per rank with mpirun, and unset RANK and WORLD_SIZE if they are left from elsewhere"
            )
        self.rank, self.size = rank, size
        self._thread = self._runtime.thread(name)
        self._roll_call = RollCall(store, rank, size)
        self._collectives = 0

    def calls(self, name: str, calls: Iterable[tuple[Any, ...]]) -> list[MPI.Request]:
        """Call a collective of the communicator with each of some arguments.

        Blocking calls are up to twice as fast as those that begin an operation: Open MPI uses other
        algorithms for them.
        """
        if self._runtime.blocking:
            function = getattr(self.communicator, name)
            for arguments in calls:
                function(*arguments)
            return []
        begin = getattr(self.communicator, f"I{name.lower()}")
        return [begin(*arguments) for arguments in calls]

    def submit(
        self,
        name: str,
        start: Callable[[], list[MPI.Request]],
        staging: Staging,
        outputs: list[Any],
        options: Options | None,
        *,
        averaged: Sequence[Tensor] = (),
        collective: bool = True,
    ) -> MpiWork:
        """Hand an operation in, and run it at once where that is as good.

        Args:
            name: for messages.
            start: does it, or begins it and returns what to wait for.
            staging: brings the results to where they belong.
            outputs: the value of its future.
            options: c10d's; None for what the caller does not wait for.
            averaged: host tensors with sums, to be divided by the number of ranks.
            collective: whether all ranks of the group take part.
        """
        if averaged:
            staging.averaged(averaged, self.size)
        timeout = options.timeout if options is not None else self.timeout
        self._collectives += collective
        number = self._collectives if collective else None
        work = MpiWork(
            lambda: self._describe(name, number),
            start=start,
            staging=staging,
            outputs=outputs,
            timeout=(timeout if timeout > _NO_TIME else self.timeout).total_seconds(),
            roll_call=self._roll_call,
            number=number,
        )
        if self._runtime.blocking and options is not None and not options.asyncOp:
            # a change of thread costs more than a short message
            self._thread.run(work)
        else:
            self._thread.submit(work)
        return work

    def _describe(self, name: str, number: int | None) -> str:
        which = "" if number is None else f"number {number}, "
        return f"{self}: {name} ({which}group {self._name})"

    def close(self) -> None:
        """Complete what was handed in and give thread and communicator back.

        Raises:
            CollectiveError: that took longer than the timeout.
        """
        if self.communicator != MPI.COMM_NULL:
            self._runtime.call(
                self.communicator.Free,
                f"closing group {self._name}",
                self.timeout.total_seconds(),
                thread=self._thread,
            )
            self._runtime.release(self._thread)

    def abandon(self) -> None:
        """Make this process leave MPI without waiting for its peers."""
        self._runtime.abandon()

    def __str__(self) -> str:
        return f"rank {self.rank}/{self.size}"
