"""Describe a network lab: its hosts, groups and link rates. Pure values, nothing of the kernel."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from gsdist.errors import ConfigError

__all__ = ["INTERFACE", "LabSettings", "parse_rate"]

INTERFACE = "eth0"
_MAX_RANKS = 250
_UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_MIN_RATE, _MAX_RATE = 1e6, 100e9


def parse_rate(text: str) -> float | None:
    """Return the bits per second of a rate like "100mbit", "2.5gbit" or "unlimited" (None).

    Units are decimal, as in `tc`.

    Raises:
        ConfigError: when the text is no rate, or one outside 1 Mb/s to 100 Gb/s.
    """
    if text == "unlimited":
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]bit)", text.strip().lower())
    if match is None:
        raise ConfigError(
            f"rate {text!r} is not understood: write a number with kbit, mbit or gbit, "
            "such as '100mbit', or 'unlimited'"
        )
    rate = float(match[1]) * _UNITS[match[2]]
    if not _MIN_RATE <= rate <= _MAX_RATE:
        raise ConfigError(
            f"rate {text!r} is outside 1mbit to 100gbit; for no limit write 'unlimited'"
        )
    return rate


@dataclass(frozen=True, kw_only=True, slots=True)
class LabSettings:
    """Choose the hosts of a network lab and the links between them."""

    ranks: int
    """Number of hosts, each with one rank: 1 to 250."""
    rate: str = "unlimited"
    """Rate of every host's link, each direction: '100mbit', '1gbit', ... or 'unlimited'. It counts whole
    Ethernet frames, so TCP payload gets 95.6 % of it."""
    rank_rates: Mapping[int, str] = field(default_factory=dict)
    """Hosts whose link differs: rank -> rate."""
    groups: int = 1
    """Number of equal groups of consecutive ranks. With more than one, each group has a switch of its own,
    joined to the others by one uplink per group."""
    uplink_rate: str = "unlimited"
    """Rate of the link between a group and the others, each direction; only with `groups` > 1."""
    latency_ms: float = 0.0
    """One-way delay added at every host's link; more than 0 needs a kernel with netem."""
    offloads: bool = False
    """Let the kernel pass super-frames of up to 64 KiB (GSO, TSO, GRO). Cheaper in CPU, so more ranks meet
    higher rates; off, every frame on the links is one a real network card would send. The shapers and the
    lab's counters count real frames either way."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "rank_rates", MappingProxyType(dict(self.rank_rates)))
        if not 1 <= self.ranks <= _MAX_RANKS:
            raise ConfigError(f"ranks = {self.ranks} must be 1 to {_MAX_RANKS}")
        for rank in self.rank_rates:
            if not 0 <= rank < self.ranks:
                raise ConfigError(
                    f"rank_rates names rank {rank}, but the ranks are 0 to {self.ranks - 1}"
                )
        for rate in (self.rate, self.uplink_rate, *self.rank_rates.values()):
            parse_rate(rate)
        if self.groups < 1 or self.ranks % self.groups:
            raise ConfigError(
                f"groups = {self.groups} must divide ranks = {self.ranks} into equal groups"
            )
        if self.groups == 1 and self.uplink_rate != "unlimited":
            raise ConfigError(f"uplink_rate = {self.uplink_rate!r} needs groups > 1")
        if self.latency_ms < 0:
            raise ConfigError(f"latency_ms = {self.latency_ms} must not be negative")

    def group_of(self, rank: int) -> int:
        """Return the group a rank belongs to."""
        return rank // (self.ranks // self.groups)

    def link_rate(self, rank: int) -> float | None:
        """Return the rate of a rank's own link in bits per second, None when unlimited."""
        return parse_rate(self.rank_rates.get(rank, self.rate))

    def path_rate(self, source: int, destination: int) -> float | None:
        """Return the slowest link's rate on the way between two ranks, None when none is limited."""
        rates = [self.link_rate(source), self.link_rate(destination)]
        if self.group_of(source) != self.group_of(destination):
            rates.append(parse_rate(self.uplink_rate))
        return min((rate for rate in rates if rate is not None), default=None)

    def address(self, rank: int) -> str:
        """Return a rank's IPv4 address, which exists inside the lab only."""
        return f"10.77.0.{rank + 1}"

    def mac(self, rank: int) -> str:
        """Return a rank's Ethernet address (of the locally administered kind)."""
        return f"02:67:73:00:00:{rank + 1:02x}"
