"""Hold a network lab open: measure its links, run ranks in it, count their bytes, always clean up."""

import atexit
import math
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any, Self

from benchmarks.netlab.counters import LabCounters
from benchmarks.netlab.errors import LabError, RateError
from benchmarks.netlab.kernel import require_rights_and_tools
from benchmarks.netlab.launch import LabRun, rank_environment, run_processes
from benchmarks.netlab.network import Names, build, destroy, kill_inside, remove_leftovers
from benchmarks.netlab.probe import Path, RateMeasurement, stream
from benchmarks.netlab.queues import QueueReader
from benchmarks.netlab.settings import INTERFACE, LabSettings, parse_rate

__all__ = ["NetworkLab"]

_FIRST_PORT = 29500
_PORTS = 1000


class NetworkLab:
    """Make hosts with shaped links for the time of a `with` block.

    Leaving the block removes everything, also on an exception, SIGINT, SIGTERM or SIGHUP (turned into
    SystemExit where the program has no handler of its own). What a lab whose process was killed left behind
    is removed by the next lab.
    """

    def __init__(self, ranks: int, rate: str = "unlimited", **options: Any) -> None:
        """Check the settings; `options` are the other fields of `LabSettings`.

        Raises:
            ConfigError: when a setting makes no sense.
        """
        self.settings = LabSettings(ranks=ranks, rate=rate, **options)
        self._names = Names.fresh()
        self._signal_handlers = ExitStack()
        self._readers: list[QueueReader] = []
        self._runs = 0

    def __enter__(self) -> Self:
        """Build the lab.

        Raises:
            LabUnavailable: when this machine cannot have one: what is missing and the way out.
            LabError: when a step fails.
        """
        require_rights_and_tools()
        try:
            self._signal_handlers.enter_context(_signals_as_exceptions())
            atexit.register(self.close)
            remove_leftovers()
            build(self._names, self.settings)
            for namespace in self._names.all(self.settings.ranks):
                self._readers.append(QueueReader(namespace))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the lab."""
        self.close()

    def close(self) -> None:
        """Remove everything the lab made; calling it again does nothing."""
        try:
            with _signals_held_back():
                while self._readers:
                    self._readers.pop().close()
                destroy(self._names)
        finally:
            self._signal_handlers.close()
            atexit.unregister(self.close)

    def _require_open(self) -> None:
        if not self._readers:
            raise LabError("the lab is not open; use it inside `with NetworkLab(...) as lab:`")

    def measure_rate(
        self, source: int = 0, destination: int = 1, *, seconds: float = 1.0
    ) -> RateMeasurement:
        """Stream from one rank to another (after 0.3 s of warm-up) and return what the path achieved."""
        return self._measure([(source, destination)], seconds)[0]

    def verify_rates(
        self, *, tolerance: float = 0.05, seconds: float = 1.0
    ) -> tuple[RateMeasurement, ...]:
        """Stream from every rank to the next at the same time, and refuse the lab when one misses its rate.

        All links are loaded in both directions, as by a ring all-reduce: a machine may well shape one stream
        and have too little CPU for all.

        Raises:
            RateError: when a path is off by more than `tolerance`, as a share of the rate asked.
        """
        size = self.settings.ranks
        pairs = [(rank, (rank + 1) % size) for rank in range(size)] if size > 1 else []
        measured = self._measure(pairs, seconds)
        for one in measured:
            if abs(one.relative_error) > tolerance:
                raise RateError(
                    f"rank {one.source} to rank {one.destination}: {one.achieved / 1e6:.1f} Mb/s achieved, "
                    f"{(one.asked or 0) / 1e6:.1f} Mb/s asked, more than {tolerance:.0%} off. This machine "
                    "may be busy or too slow: wait, ask for less, or set offloads (cheaper in CPU)."
                )
        return measured

    def _measure(
        self, pairs: Sequence[tuple[int, int]], seconds: float
    ) -> tuple[RateMeasurement, ...]:
        self._require_open()
        asked = [self.settings.path_rate(source, destination) for source, destination in pairs]
        paths = [
            Path(
                source=self._names.rank(source),
                destination=self._names.rank(destination),
                address=self.settings.address(destination),
                rate=rate,
            )
            for (source, destination), rate in zip(pairs, asked, strict=True)
        ]
        before, after, elapsed = stream(paths, self.counters, seconds=seconds)
        traffic = after - before
        return tuple(
            RateMeasurement(
                source=source,
                destination=destination,
                asked=rate,
                achieved=8 * self._bytes_at_slowest(traffic, source, destination) / elapsed,
            )
            for (source, destination), rate in zip(pairs, asked, strict=True)
        )

    def _bytes_at_slowest(self, traffic: LabCounters, source: int, destination: int) -> int:
        """Return what passed the slowest link on the way between two ranks."""
        passed = [
            (self.settings.link_rate(source), traffic.ranks[source].sent_bytes),
            (self.settings.link_rate(destination), traffic.ranks[destination].received_bytes),
        ]
        home, away = self.settings.group_of(source), self.settings.group_of(destination)
        if home != away:
            passed.append((parse_rate(self.settings.uplink_rate), traffic.uplinks[home].sent_bytes))
        return min(passed, key=lambda link: math.inf if link[0] is None else link[0])[1]

    def counters(self) -> LabCounters:
        """Return what has passed every link since the lab was built, on the wire, whole frames."""
        self._require_open()
        switch, *hosts = (reader.read() for reader in self._readers)
        uplinks = range(self.settings.groups if self.settings.groups > 1 else 0)
        return LabCounters.between(
            [(host[INTERFACE], switch[f"port{rank}"]) for rank, host in enumerate(hosts)],
            [(switch[f"up{group}"], switch[f"down{group}"]) for group in uplinks],
        )

    def run(
        self,
        command: Sequence[str],
        *,
        timeout: float,
        environment: Mapping[str, str] | None = None,
        failure_grace: float = 10.0,
    ) -> LabRun:
        """Run a command once per rank, each inside its host, as torchrun would start it.

        Args:
            command: the program and its arguments.
            timeout: seconds after which everything still running is killed.
            environment: variables beside this process's own and torchrun's; they win.
            failure_grace: seconds the other ranks get once one has failed.
        """
        self._require_open()
        port = _FIRST_PORT + self._runs % _PORTS
        self._runs += 1
        size, master = self.settings.ranks, self.settings.address(0)
        environments = [
            {"OMP_NUM_THREADS": "1", **os.environ}
            | rank_environment(rank, size, master, port)
            | dict(environment or {})
            for rank in range(size)
        ]
        before = self.counters()
        try:
            results = run_processes(
                lambda rank: ["ip", "netns", "exec", self._names.rank(rank), *command],
                environments,
                timeout=timeout,
                failure_grace=failure_grace,
            )
        finally:
            # children that left their rank's session
            for rank in range(size):
                kill_inside(self._names.rank(rank))
        return LabRun(ranks=results, traffic=self.counters() - before)


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Deliver signals only afterwards, so that a second Ctrl-C does not stop the cleaning up."""
    held: list[int] = []
    earlier = {}
    # blocking them in this thread is not enough: Python notices them through any other thread
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            handler = signal.getsignal(number)
            if callable(handler):
                earlier[number] = handler
                signal.signal(number, lambda number, _: held.append(number))
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
        for caught in held:
            signal.raise_signal(caught)


@contextmanager
def _signals_as_exceptions() -> Iterator[None]:
    """Turn signals that would end the program on the spot into SystemExit, so that `finally` runs."""

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    changed = []
    # only the main thread may set handlers
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, leave)
                changed.append(number)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)
