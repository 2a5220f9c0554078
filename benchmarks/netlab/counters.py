"""Count bytes and packets as they pass the links."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.netlab.queues import QueueTotals
from benchmarks.netlab.settings import INTERFACE

__all__ = ["Counters", "LabCounters", "interface_counters"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Counters:
    """Count what passed one link, whole Ethernet frames (14 bytes of header, no checksum or preamble)."""

    sent_bytes: int
    """Bytes from the host (or group) into the network."""
    sent_packets: int
    """Frames from the host (or group) into the network."""
    received_bytes: int
    """Bytes from the network to the host (or group)."""
    received_packets: int
    """Frames from the network to the host (or group)."""
    dropped_packets: int = 0
    """Frames dropped by the shapers of this link, both directions; TCP sends each again."""

    def __sub__(self, earlier: "Counters") -> "Counters":
        return Counters(
            sent_bytes=self.sent_bytes - earlier.sent_bytes,
            sent_packets=self.sent_packets - earlier.sent_packets,
            received_bytes=self.received_bytes - earlier.received_bytes,
            received_packets=self.received_packets - earlier.received_packets,
            dropped_packets=self.dropped_packets - earlier.dropped_packets,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class LabCounters:
    """Count what passed all links of a lab; the difference of two counts is the traffic between them."""

    ranks: tuple[Counters, ...]
    """One entry per rank, in rank order."""
    uplinks: tuple[Counters, ...] = ()
    """One entry per group, empty without groups."""

    def __sub__(self, earlier: "LabCounters") -> "LabCounters":
        return LabCounters(
            ranks=tuple(now - then for now, then in zip(self.ranks, earlier.ranks, strict=True)),
            uplinks=tuple(
                now - then for now, then in zip(self.uplinks, earlier.uplinks, strict=True)
            ),
        )

    @classmethod
    def between(
        cls,
        rank_sides: Iterable[tuple[QueueTotals, QueueTotals]],
        uplink_sides: Iterable[tuple[QueueTotals, QueueTotals]],
    ) -> "LabCounters":
        """Combine the (sending, receiving) queues of every link."""
        return cls(
            ranks=tuple(_link(*sides) for sides in rank_sides),
            uplinks=tuple(_link(*sides) for sides in uplink_sides),
        )


def _link(sending: QueueTotals, receiving: QueueTotals) -> Counters:
    return Counters(
        sent_bytes=sending.bytes,
        sent_packets=sending.packets,
        received_bytes=receiving.bytes,
        received_packets=receiving.packets,
        dropped_packets=sending.drops + receiving.drops,
    )


def interface_counters(
    interface: str = INTERFACE, path: Path = Path("/proc/thread-self/net/dev")
) -> Counters:
    """Return the counters of an interface where the calling thread lives; for use inside a rank's program.

    With offloads on they count super-frames, so headers are missing.

    Raises:
        KeyError: when there is no such interface.
    """
    for line in path.read_text().splitlines():
        name, separator, rest = line.partition(":")
        if separator and name.strip() == interface:
            values = [int(word) for word in rest.split()]
            return Counters(
                received_bytes=values[0],
                received_packets=values[1],
                sent_bytes=values[8],
                sent_packets=values[9],
            )
    raise KeyError(f"no interface {interface!r} here; outside a lab's rank name another one")
