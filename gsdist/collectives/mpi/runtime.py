"""Start MPI, hold what all process groups of this process share, and leave MPI at exit.

Where MPI allows several threads at once (MPI_THREAD_MULTIPLE, the rule), every process group has a
communication thread of its own, which uses blocking calls; collectives of different groups then cannot hold
up one another, and a caller that waits anyway may call MPI itself. Where it does not, all groups share the
thread that started MPI, which begins operations and polls.
"""

import atexit
import sys
import threading
import zlib
from collections.abc import Callable, Sequence
from typing import ClassVar, TypeVar

import mpi4py

if not hasattr(mpi4py, "MPI"):  # nobody has started MPI yet: leave it to the communication thread
    mpi4py.rc.initialize = False
    mpi4py.rc.finalize = False
from mpi4py import MPI

from gsdist.collectives.mpi.thread import CommunicationThread
from gsdist.errors import CollectiveError, ConfigError, UnsupportedSetup

__all__ = ["Runtime"]

_LEVELS = {
    MPI.THREAD_SINGLE: "MPI_THREAD_SINGLE",
    MPI.THREAD_FUNNELED: "MPI_THREAD_FUNNELED",
    MPI.THREAD_SERIALIZED: "MPI_THREAD_SERIALIZED",
    MPI.THREAD_MULTIPLE: "MPI_THREAD_MULTIPLE",
}
_SMALLEST_TAG_LIMIT = 32767
Result = TypeVar("Result")


class Runtime:
    """Be this process's part in MPI; `start` returns the only one."""

    _only: ClassVar["Runtime | None"] = None
    _starting: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, communicator: MPI.Intracomm | None) -> None:
        """Start MPI, or join what the program has started."""
        self._home = CommunicationThread("gsdist-mpi")
        self._started_here = not MPI.Is_initialized()
        if self._started_here:
            self._home.call(lambda: MPI.Init_thread(MPI.THREAD_MULTIPLE))
        level = self._home.call(MPI.Query_thread)
        if not self._started_here and level < MPI.THREAD_SERIALIZED:
            raise UnsupportedSetup(
                f"the program has started MPI with {_LEVELS[level]}, so that only its main thread may call "
                "it, but collectives need a thread of their own; leave starting MPI to gsdist, or start it "
                "with MPI_THREAD_SERIALIZED or MPI_THREAD_MULTIPLE"
            )
        self.blocking = level == MPI.THREAD_MULTIPLE
        own = self.communicator = communicator or MPI.COMM_WORLD
        self.rank, self.size = self._home.call(lambda: (own.rank, own.size))
        self._abandoned = False
        atexit.register(self._leave)

    @classmethod
    def start(cls, communicator: MPI.Intracomm | None = None) -> "Runtime":
        """Start MPI unless it is running; with a communicator, base all groups on it.

        Raises:
            ConfigError: a communicator was given too late.
            UnsupportedSetup: the program has started MPI for its main thread alone.
        """
        with cls._starting:
            if cls._only is None:
                cls._only = cls(communicator)
            elif communicator is not None:
                raise ConfigError(
                    "a communicator was given, but MPI process groups are in use already; "
                    "call use_communicator once, before init_process_group"
                )
            return cls._only

    def thread(self, name: str) -> CommunicationThread:
        """Return the thread for the operations of a new process group."""
        return CommunicationThread(f"gsdist-mpi-{name}") if self.blocking else self._home

    def release(self, thread: CommunicationThread) -> None:
        """Let the thread of a process group end after its last operation."""
        if thread is not self._home:
            thread.stop()

    def communicator_of(
        self, ranks: Sequence[int], name: str, timeout: float
    ) -> tuple[MPI.Intracomm, int, int]:
        """Make a communicator of some ranks (none means all); on all of them at the same time.

        Returns it, this process's rank in it and its size.

        Raises:
            CollectiveError: not all of them came within so many seconds.
        """

        def make() -> tuple[MPI.Intracomm, int, int]:
            if ranks:
                members = self.communicator.Get_group().Incl(list(ranks))
                # equal on all members, and different for groups that are made at the same time
                tag = zlib.crc32(name.encode()) % _SMALLEST_TAG_LIMIT
                made = self.communicator.Create_group(members, tag)
            else:
                made = self.communicator.Dup()
            return made, made.rank, made.size

        return self.call(make, f"making group {name} of ranks {list(ranks) or 'all'}", timeout)

    def call(
        self,
        function: Callable[[], Result],
        purpose: str,
        timeout: float,
        *,
        thread: CommunicationThread | None = None,
    ) -> Result:
        """Run a function that calls MPI on a group's thread, by default on the one that started MPI.

        Raises:
            CollectiveError: it did not return within so many seconds.
        """
        try:
            return (thread or self._home).call(function, timeout)
        except TimeoutError:
            raise CollectiveError(
                f"rank {self.rank}/{self.size}: {purpose} did not finish within {timeout:g} s; some rank has "
                "not come to it"
            ) from None

    def abandon(self) -> None:
        """Leave without MPI_Finalize, which waits for all ranks: the launcher then ends the whole job."""
        self._abandoned = True

    def _leave(self) -> None:
        # set by the interpreter for an exception that nobody caught
        failed = self._abandoned or getattr(sys, "last_value", None) is not None
        if not failed and self._started_here:
            self._home.call(MPI.Finalize)
        elif failed and not self._started_here:
            # the program's own mpi4py would finalise, and wait
            MPI.COMM_WORLD.Abort(1)
