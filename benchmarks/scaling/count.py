"""Run one exchange of every method among emulated workers and count messages and bytes.

The collectives that a method really issues, with their real sizes, are recorded by the reducers. Rings,
all-gathers and broadcasts are then counted by the cost model; point-to-point messages (trees) are also
counted one by one as they are sent, and both counts are reported.
"""

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from benchmarks.exchange.driver import Driver, Exchange
from benchmarks.exchange.methods import METHODS
from benchmarks.gradients import CapturedGradients, load
from gsdist.collectives import LocalGroup, run_together
from gsdist.collectives.cost_model import cost_of

__all__ = ["CountingGroup", "Row", "count_all", "count_gradients", "default_methods"]


class CountingGroup(LocalGroup):
    """Count point-to-point messages of one rank."""

    sent_bytes = 0
    received_bytes = 0
    messages = 0

    def forget(self) -> None:
        """Start counting anew."""
        self.sent_bytes = self.received_bytes = self.messages = 0

    def send(self, tensors: Sequence[Tensor], target: int, tag: int = 0) -> Any:
        """Send and count."""
        self.sent_bytes += tensors[0].nbytes
        self.messages += 1
        return super().send(tensors, target, tag)

    def recv(self, tensors: Sequence[Tensor], source: int, tag: int = 0) -> Any:
        """Receive and count."""
        self.received_bytes += tensors[0].nbytes
        self.messages += 1
        return super().recv(tensors, source, tag)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """Hold the counts of one method at one number of workers."""

    method: str
    model: str
    dimension: int
    workers: int
    predicted_bytes: float
    """On the busiest link, by the cost model."""
    predicted_messages: float
    """That follow one another, by the cost model."""
    point_to_point_bytes: float
    """Sent and received by the busiest rank, counted."""
    point_to_point_messages: float
    """Sent and received by the busiest rank, counted."""

    def to_mapping(self) -> dict[str, Any]:
        """Return the row for JSON."""
        return asdict(self)


def count_all(
    model: str, workers: Sequence[int], methods: Sequence[str], density: float
) -> list[Row]:
    """Return one row per method and number of workers."""
    gradients = load(model, max(workers))
    return [count_gradients(method, gradients, p, density) for method in methods for p in workers]


def count_gradients(method: str, gradients: CapturedGradients, workers: int, density: float) -> Row:
    """Exchange the workers' captured gradients and count the mean of one cycle of the method."""
    config = METHODS[method](density)

    def exchange(group: LocalGroup) -> Any:
        assert isinstance(group, CountingGroup)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # at a small d some settings save nothing: that is a result
            driver = Driver(config, gradients.shapes, group)
        captured = gradients.of(group.rank())
        # a half-precision sum travels so only once its scale is known
        for turn in range(max(driver.settling, len(captured) - 1)):
            driver.buffer.copy_(captured[turn % len(captured)])
            driver.exchange()
        group.forget()
        counted = []
        for turn in range(driver.period):
            driver.buffer.copy_(captured[turn % len(captured)])
            counted.append(driver.exchange())
        return Exchange.mean(counted)

    groups = CountingGroup.create(workers)
    seen = run_together(groups, exchange)[0]
    cost, count = cost_of(seen.transfers, workers), seen.exchanges
    counting = [group for group in groups if isinstance(group, CountingGroup)]
    return Row(
        method=method,
        model=gradients.model,
        dimension=gradients.dimension,
        workers=workers,
        predicted_bytes=cost.bytes / count,
        predicted_messages=cost.messages / count,
        point_to_point_bytes=max(g.sent_bytes + g.received_bytes for g in counting) / count,
        point_to_point_messages=max(g.messages for g in counting) / count,
    )


def default_methods() -> list[str]:
    """Return all methods whose exchange can be emulated: those that use gsdist's collectives."""
    return [name for name in METHODS if "original" not in name]
