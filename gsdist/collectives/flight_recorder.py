"""Remember the last collectives of this process, for the moment one of them does not come back.

What is remembered is written out when a collective fails and on SIGUSR1, to a file of the run's folder or to
standard error.
"""

import os
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

__all__ = ["FLIGHT_RECORDER", "FlightRecorder", "RecordedCollective"]

_CAPACITY = 64


@dataclass(slots=True)
class RecordedCollective:
    """Describe one collective of this rank."""

    sequence: int
    """Which collective of this process it is, from 0."""
    phase: str
    """Who asked for it, such as "step 12, allreduce_values"."""
    size: int
    """Bytes handed over."""
    started: float
    """When, by `time.monotonic`."""
    seconds: float | None = None
    """How long it took; None while it is under way."""
    failure: str | None = None

    def describe(self) -> str:
        """Return one line."""
        if self.seconds is None:
            state = f"under way for {time.monotonic() - self.started:.3f} s"
        else:
            state = f"{'failed' if self.failure else 'done'} after {self.seconds:.3f} s"
        return f"{self.sequence:8d}  {self.size:12,d} bytes  {state:28s}  {self.phase}"


class FlightRecorder:
    """Keep the last collectives in a ring. Methods may be called from any thread."""

    def __init__(self, capacity: int = _CAPACITY) -> None:
        self._ring: deque[RecordedCollective] = deque(maxlen=capacity)
        self._count = 0
        self._lock = Lock()
        self.seconds = 0.0
        """Seconds this process has spent in collectives that are over."""
        self.file: Path | None = None
        """Where dumps go; None: standard error."""

    def begin(self, phase: str, size: int) -> RecordedCollective:
        """Remember a collective that starts now."""
        with self._lock:
            entry = RecordedCollective(self._count, phase, size, time.monotonic())
            self._count += 1
            self._ring.append(entry)
        return entry

    def finish(self, entry: RecordedCollective, failure: str | None = None) -> None:
        """Take note that a collective is over."""
        entry.seconds = time.monotonic() - entry.started
        entry.failure = failure
        self.seconds += entry.seconds

    def last(self) -> RecordedCollective | None:
        """Return the newest."""
        return self._ring[-1] if self._ring else None

    def dump(self, reason: str) -> None:
        """Write out what is remembered, oldest first."""
        with self._lock:
            lines = [entry.describe() for entry in self._ring]
        text = "\n".join([f"gsdist: the last {len(lines)} collectives ({reason}):", *lines, ""])
        if self.file is not None:
            with suppress(OSError):
                self.file.parent.mkdir(parents=True, exist_ok=True)
                with self.file.open("a") as file:
                    file.write(text)
                text = f"gsdist: the last collectives are in {self.file} ({reason})\n"
        with suppress(OSError):  # in one write, which those of other ranks cannot interrupt
            os.write(2, text.encode())


FLIGHT_RECORDER = FlightRecorder()
"""The one of this process."""
