"""Make one worker's collectives take as long as a link among many workers would need for them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol
from unittest.mock import patch

import torch
from torch import Tensor

from gsdist.collectives.cost_model import Link, Transfer, seconds_of
from gsdist.reducers.statistics import StatisticsRecorder

__all__ = ["SimulatedWire"]

_FIRST_CYCLES = 200_000_000
"""About 0.1 s of a GPU, in which its clock comes up from idling."""
_ENOUGH_SECONDS = 0.01
"""Of spinning, to calibrate by: starting and stopping takes microseconds."""


class _Pauses(Protocol):
    def pause(self, seconds: float) -> None:
        """Hold up the exchange, and nothing else."""

    def taken(self) -> float:
        """Return the seconds of all pauses since the last call."""


class SimulatedWire:
    """Hold up gsdist's exchange at every collective for what the planner's cost model says.

    The pause comes where a reducer issues the collective, in the exchange's own thread and, on a GPU, as work
    in its own stream: what runs beside the exchange goes on.
    """

    def __init__(self, link: Link, ranks: int, device: torch.device) -> None:
        self._link = link
        self._ranks = ranks
        self._pauses: _Pauses = (
            _SpinningStream(device) if device.type == "cuda" else _SleepingThread()
        )

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let all reducers exchange over this wire."""
        issued = StatisticsRecorder.issued

        def issue(recorder: StatisticsRecorder, kind: str, *buffers: Tensor, **how: Any) -> None:
            issued(recorder, kind, *buffers, **how)
            transfer = Transfer(kind=kind, size=sum(buffer.nbytes for buffer in buffers))
            self._pauses.pause(seconds_of([transfer], self._ranks, self._link))

        with patch.object(StatisticsRecorder, "issued", issue):
            yield

    def seconds(self) -> float:
        """Return how long messages have been under way since the last call, as measured."""
        return self._pauses.taken()


class _SleepingThread:
    def __init__(self) -> None:
        self._taken = 0.0

    def pause(self, seconds: float) -> None:
        start = time.perf_counter()
        time.sleep(seconds)
        self._taken += time.perf_counter() - start

    def taken(self) -> float:
        taken, self._taken = self._taken, 0.0
        return taken


class _SpinningStream:
    """Spin on the GPU, whose clock follows the load: what was asked for and taken calibrates what follows."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._spins: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._cycles = 0
        self._cycles_per_second = 0.0
        for _ in range(2):
            self._spin(_FIRST_CYCLES)
            self.taken()

    def pause(self, seconds: float) -> None:
        self._spin(round(seconds * self._cycles_per_second))

    def _spin(self, cycles: int) -> None:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        torch.cuda._sleep(cycles)
        end.record()
        self._spins.append((begin, end))
        self._cycles += cycles

    def taken(self) -> float:
        torch.cuda.synchronize(self._device)
        taken = 1e-3 * sum(begin.elapsed_time(end) for begin, end in self._spins)
        if taken > _ENOUGH_SECONDS:
            self._cycles_per_second = self._cycles / taken
        self._spins, self._cycles = [], 0
        return taken
