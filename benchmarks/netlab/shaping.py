"""Choose the parameters of `tc tbf` for a rate, and write the `tc` lines for one interface."""

from dataclasses import dataclass

__all__ = ["MTU", "Shaper"]

MTU = 1500
_BURST_SECONDS = 1e-3
_MIN_BURST = 24_000
_QUEUE_SECONDS = 0.1
_MIN_QUEUE = 16_000_000
"""More than the TCP windows of two flows that share a slow link and come from faster ones: what is dropped
there is only noticed by a timer of 200 ms, which halved the rate of large messages."""
_MAX_SEGMENT = 65536
_UNSHAPED_QUEUE_PACKETS = 100_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Shaper:
    """Shape what leaves one interface."""

    rate: float | None
    """Bits per second of whole Ethernet frames; None does not shape, but still counts."""
    latency_ms: float = 0.0
    """Delay before the shaping, in milliseconds."""

    @property
    def burst(self) -> int:
        """Return the bucket in bytes: what a late timer may catch up, and what passes unshaped after a pause.

        One millisecond's worth, 24 kB at least: large enough for the timers of a busy machine, small enough
        that messages of interest are shaped.
        """
        assert self.rate is not None
        return max(int(self.rate / 8 * _BURST_SECONDS), _MIN_BURST)

    @property
    def queue(self) -> int:
        """Return the bytes that may wait, so deep that TCP meets its window before a drop."""
        assert self.rate is not None
        return max(int(self.rate / 8 * _QUEUE_SECONDS), _MIN_QUEUE)

    @property
    def segment(self) -> int:
        """Return the largest buffer TCP may hand to this interface.

        A buffer larger than the bucket would be cut up inside tbf, one packet at a time, which costs so much
        CPU that 1 Gb/s is no longer met; so at least two must fit.
        """
        return _MAX_SEGMENT if self.rate is None else min(_MAX_SEGMENT, self.burst // 2)

    def lines(self, interface: str) -> list[str]:
        """Return the lines for `tc -batch` that shape one interface."""
        parent = "root handle 1:"
        lines = []
        if self.latency_ms:
            lines.append(
                f"qdisc add dev {interface} {parent} netem delay {self.latency_ms}ms"
                f" limit {_UNSHAPED_QUEUE_PACKETS}"
            )
            parent = "parent 1:1 handle 10:"
        if self.rate is not None:
            lines.append(
                f"qdisc add dev {interface} {parent} tbf rate {self.rate:.0f}bit"
                f" burst {self.burst} limit {self.queue}"
            )
        elif not self.latency_ms:
            lines.append(
                f"qdisc add dev {interface} {parent} pfifo limit {_UNSHAPED_QUEUE_PACKETS}"
            )
        return lines
