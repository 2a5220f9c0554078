"""Predict bytes, messages and seconds of collectives from latency and bandwidth (the alpha-beta model).

All figures are those of the busiest link in one direction, of full-duplex links, without contention inside
the network. `size` is always the number of bytes one rank hands to the collective; P is the number of ranks.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

__all__ = ["COST_FUNCTIONS", "Cost", "Link", "Transfer", "cost_of", "seconds_of"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """Describe what one message costs."""

    latency: float
    """Seconds before the first byte of a message arrives (alpha)."""
    bandwidth: float
    """Bytes per second (1 / beta)."""
    overhead: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    """What collectives of some kinds were measured to take beside bytes over bandwidth: pairs of a transfer's
    size and seconds, by ascending size, for one number of ranks. Without it, latency per message."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Count what crosses the busiest link and how many messages follow one another."""

    bytes: float = 0.0
    messages: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(bytes=self.bytes + other.bytes, messages=self.messages + other.messages)

    def seconds(self, link: Link) -> float:
        """Return the predicted time in seconds."""
        return self.messages * link.latency + self.bytes / link.bandwidth


@dataclass(frozen=True, kw_only=True, slots=True)
class Transfer:
    """Name one collective of an exchange and the bytes each rank hands to it."""

    kind: str
    """A key of COST_FUNCTIONS."""
    size: float


def _ring_all_reduce(size: float, ranks: int) -> Cost:
    return Cost(bytes=2 * (ranks - 1) / ranks * size, messages=2 * (ranks - 1))


def _tree_all_reduce(size: float, ranks: int) -> Cost:
    # Rank 0 receives one buffer per level on the way up and sends one per level on the way down; the two
    # follow one another, so both count in time though they use different directions of its link.
    levels = math.ceil(math.log2(ranks))
    return Cost(bytes=2 * levels * size, messages=2 * levels)


def _ring_all_gather(size: float, ranks: int) -> Cost:
    return Cost(bytes=(ranks - 1) * size, messages=ranks - 1)


def _all_to_all(size: float, ranks: int) -> Cost:
    # `size` is what one rank sends to all others; balanced, it receives as much.
    return Cost(bytes=size, messages=ranks - 1)


def _gather(size: float, ranks: int) -> Cost:
    return Cost(bytes=(ranks - 1) * size, messages=1)


def _tree_broadcast(size: float, ranks: int) -> Cost:
    levels = math.ceil(math.log2(ranks))
    return Cost(bytes=levels * size, messages=levels)


def _tree_reduce(size: float, ranks: int) -> Cost:
    return _tree_broadcast(size, ranks)


COST_FUNCTIONS: Mapping[str, Callable[[float, int], Cost]] = MappingProxyType(
    {
        "ring_all_reduce": _ring_all_reduce,
        "tree_all_reduce": _tree_all_reduce,
        "ring_all_gather": _ring_all_gather,
        "all_to_all": _all_to_all,
        "gather": _gather,
        "tree_broadcast": _tree_broadcast,
        "tree_reduce": _tree_reduce,
    }
)
"""Cost of a collective from bytes per rank and number of ranks, by its name."""


def cost_of(transfers: tuple[Transfer, ...], ranks: int) -> Cost:
    """Add up the cost of collectives that follow one another; nothing is sent by a single rank."""
    if ranks == 1:
        return Cost()
    return sum((COST_FUNCTIONS[t.kind](t.size, ranks) for t in transfers), Cost())


def seconds_of(transfers: Iterable[Transfer], ranks: int, link: Link) -> float:
    """Return the predicted seconds of collectives that follow one another."""
    return sum(_seconds(transfer, ranks, link) for transfer in transfers) if ranks > 1 else 0.0


def _seconds(transfer: Transfer, ranks: int, link: Link) -> float:
    cost = COST_FUNCTIONS[transfer.kind](transfer.size, ranks)
    if transfer.kind not in link.overhead:
        return cost.seconds(link)
    sizes, seconds = zip(*link.overhead[transfer.kind], strict=True)
    return max(0.0, float(np.interp(transfer.size, sizes, seconds)) + cost.bytes / link.bandwidth)
