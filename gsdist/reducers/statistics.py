"""Count bytes and seconds while a reducer works."""

import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.autograd.profiler import record_function

from gsdist.collectives.cost_model import Transfer
from gsdist.reducers.protocol import ExchangeStatistics

__all__ = ["StatisticsRecorder", "is_wire", "wire_seconds"]

_WIRE = ("allreduce", "allgather", "gather", "broadcast", "tree", "barrier", "node")


def is_wire(phase: str) -> bool:
    """Tell a phase that communicates (and waits for other ranks) from one that computes, by its name."""
    return phase.startswith(_WIRE)


def wire_seconds(phases: Mapping[str, float]) -> float:
    """Add up the seconds of the phases that communicate."""
    return sum(seconds for phase, seconds in phases.items() if is_wire(phase))


class StatisticsRecorder:
    """Accumulate the counters behind `ExchangeStatistics`."""

    def __init__(self, dense_bytes_per_step: int) -> None:
        self._dense_bytes_per_step = dense_bytes_per_step
        self._steps = 0
        self._skipped = 0
        self._repeated = 0
        self._dense_bytes = 0
        self._payload = 0
        self._payload_this_step = 0
        self._payload_last_step = 0
        self._transfers: list[Transfer] = []
        self._transfers_last_step: tuple[Transfer, ...] = ()
        self._seconds: dict[str, float] = {}
        self._payload_of: dict[str, float] = {}
        self.last_step_skipped = False

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time spent inside to a phase; profilers see it as a range `gsdist::name`."""
        start = time.perf_counter()
        try:
            with record_function(f"gsdist::{name}"):
                yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start

    def issued(self, kind: str, *buffers: Tensor, sends: bool = True) -> None:
        """Count a collective of a kind in the cost model, and its buffers as payload if this rank sends."""
        size = sum(buffer.numel() * buffer.element_size() for buffer in buffers)
        self._transfers.append(Transfer(kind=kind, size=size))
        if sends:
            self._payload_this_step += size

    def repeated(self) -> None:
        """Count a half-precision sum that was not finite and is made again; warn of the first."""
        if self._repeated == 0:
            warnings.warn(
                "a sum was not finite in half precision and is made again in float32; more of them are "
                "counted (repeated_sums), not warned of",
                stacklevel=2,
            )
        self._repeated += 1

    def end_step(self, numbers: Mapping[str, int] | None = None, *, skipped: bool = False) -> None:
        """Close the byte count of one exchange; `numbers` of each parameter were summed in it."""
        self._divide(numbers or {})
        self._steps += not skipped
        self._skipped += skipped
        self.last_step_skipped = skipped
        self._dense_bytes += self._dense_bytes_per_step
        self._payload += self._payload_this_step
        self._payload_last_step, self._payload_this_step = self._payload_this_step, 0
        self._transfers_last_step, self._transfers = tuple(self._transfers), []

    def _divide(self, numbers: Mapping[str, int]) -> None:
        each = self._payload_this_step / max(1, sum(numbers.values()))
        for name, count in numbers.items():
            self._payload_of[name] = self._payload_of.get(name, 0.0) + count * each

    def state_dict(self) -> dict[str, Any]:
        """Return the counters as plain numbers."""
        return {
            "steps": self._steps,
            "skipped_steps": self._skipped,
            "repeated_sums": self._repeated,
            "payload_bytes": self._payload,
            "dense_bytes": self._dense_bytes,
            "payload_bytes_of": dict(self._payload_of),
            "seconds": dict(self._seconds),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on counting from saved counters."""
        self._steps = state["steps"]
        self._skipped = state["skipped_steps"]
        self._repeated = state["repeated_sums"]
        self._payload = state["payload_bytes"]
        self._dense_bytes = state["dense_bytes"]
        self._payload_of = dict(state.get("payload_bytes_of", {}))  # unknown to earlier checkpoints
        self._seconds = dict(state["seconds"])

    def snapshot(self, *, residual_norm: float) -> ExchangeStatistics:
        """Return the counters as they stand."""
        return ExchangeStatistics(
            steps=self._steps,
            skipped_steps=self._skipped,
            repeated_sums=self._repeated,
            payload_bytes=self._payload,
            payload_bytes_last_step=self._payload_last_step,
            dense_bytes=self._dense_bytes,
            transfers_last_step=self._transfers_last_step,
            seconds=dict(self._seconds),
            payload_bytes_of=dict(self._payload_of),
            residual_norm=residual_norm,
        )
