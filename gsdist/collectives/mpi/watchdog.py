"""End the job when an operation runs past its deadline.

MPI cannot give up an operation, and a rank that went on alone would diverge from the others. So every rank
leaves with EXIT_CODE, the one that `gsdist` uses for failed collectives.
"""

import os
import sys
import threading
import time
from contextlib import suppress
from typing import Any

from mpi4py import MPI

from gsdist.collectives.flight_recorder import FLIGHT_RECORDER

__all__ = ["EXIT_CODE", "WATCHDOG"]

EXIT_CODE = 66
_INTERVAL = 0.1
_ANSWER_AFTER = 1.0
_ABORT_SECONDS = 8.0
_READ_SECONDS = 0.5
"""MPICH's launcher drops what it has not read when a job is aborted."""


class Watchdog:
    """Know all operations under way and look at their deadlines ten times a second."""

    def __init__(self) -> None:
        self._deadlines: dict[Any, tuple[float, float]] = {}
        self._started = False
        self._lock = threading.Lock()

    def watch(self, work: Any, timeout: float) -> None:
        """End the job unless the operation is forgotten within so many seconds."""
        if not self._started:
            self._start()
        self._deadlines[work] = time.monotonic() + timeout, timeout

    def forget(self, work: Any) -> None:
        """Take note that an operation is complete."""
        self._deadlines.pop(work, None)

    def _start(self) -> None:
        with self._lock:
            if not self._started:
                self._started = True
                # apart, because a store that does not answer must not keep the deadlines
                for task in (self._keep_deadlines, self._answer_roll_calls):
                    threading.Thread(target=task, name="gsdist-mpi-watchdog", daemon=True).start()

    def _keep_deadlines(self) -> None:
        while True:
            time.sleep(_INTERVAL)
            now = time.monotonic()
            for work, (deadline, timeout) in self._deadlines.copy().items():
                if now > deadline:
                    _end_job(work, timeout)

    def _answer_roll_calls(self) -> None:
        while True:
            time.sleep(_ANSWER_AFTER)
            now = time.monotonic()
            for work, (deadline, timeout) in self._deadlines.copy().items():
                if now > deadline - timeout + _ANSWER_AFTER:
                    with suppress(RuntimeError):  # a store that is gone
                        work.answer_roll_call()


def _end_job(work: Any, timeout: float) -> None:
    _complain(
        f"{work.description} did not finish within {timeout:g} s; ending the job with exit code {EXIT_CODE}"
    )
    FLIGHT_RECORDER.dump(work.description)
    # Should the store or MPI be stuck as well, this process at least does not outlive the job.
    force = threading.Timer(_ABORT_SECONDS, os._exit, (EXIT_CODE,))
    force.daemon = True
    force.start()
    with suppress(RuntimeError):
        absentees = work.call_roll()
        if absentees:
            _complain(f"{work.description}: ranks {absentees} of the group have not come to it")
            time.sleep(_READ_SECONDS)
    MPI.COMM_WORLD.Abort(EXIT_CODE)


def _complain(text: str) -> None:
    print(f"gsdist: error: {text}", file=sys.stderr, flush=True)


WATCHDOG = Watchdog()
"""One for the whole process."""
