"""Build the namespaces, links and switches of a lab, and remove them."""

import os
import re
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from benchmarks.netlab.errors import LabError, LabUnavailable
from benchmarks.netlab.kernel import batch, read, switch_offloads_off, write_sysctls
from benchmarks.netlab.settings import INTERFACE, LabSettings, parse_rate
from benchmarks.netlab.shaping import MTU, Shaper

__all__ = ["Names", "build", "destroy", "existing", "kill_inside", "remove_leftovers"]

_serial = count()
_DEATH_SECONDS = 5.0
_QUIET = {"ipv6/conf/all/disable_ipv6": "1", "ipv6/conf/default/disable_ipv6": "1"}
_TCP = {
    # every kernel has reno and lets a namespace choose it; on links without loss it behaves like cubic
    "ipv4/tcp_congestion_control": "reno",
    # else one connection would start from what an earlier one learned
    "ipv4/tcp_no_metrics_save": "1",
    "ipv4/tcp_timestamps": "1",
    # What a sender has under way beyond that waits before a slow link, where it delays acknowledgements past
    # TCP's timer of 200 ms: it sends again and halves its window. Hosts with real network cards queue less.
    "ipv4/tcp_wmem": "4096 16384 1048576",
}


@dataclass(frozen=True, slots=True)
class Names:
    """Name the namespaces of one lab, so that a later run sees whether their owner still lives."""

    prefix: str

    @classmethod
    def fresh(cls) -> "Names":
        """Return names no other lab has: process id, its start time (ids are used again), serial number."""
        return cls(f"gsdist-lab-{os.getpid()}-{_start_time(os.getpid())}-{next(_serial)}")

    @property
    def switch(self) -> str:
        """Return the namespace that holds the switches."""
        return f"{self.prefix}-switch"

    def rank(self, rank: int) -> str:
        """Return a rank's namespace."""
        return f"{self.prefix}-rank{rank}"

    def all(self, ranks: int) -> list[str]:
        """Return all namespaces of the lab, the switch's first."""
        return [self.switch, *(self.rank(rank) for rank in range(ranks))]


def _start_time(process: int) -> int | None:
    try:
        # the second field is the program's name in parentheses and may hold anything
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return None


def existing() -> list[str]:
    """Return all namespaces of all labs on this machine."""
    return [
        line.split()[0]
        for line in read("ip", "netns", "list").splitlines()
        if line.startswith("gsdist-lab-")
    ]


def remove_leftovers() -> list[str]:
    """Remove the namespaces of labs whose owner is dead, and return their names."""
    removed = []
    for name in existing():
        match = re.match(r"gsdist-lab-(\d+)-(\d+)-", name)
        if match and _start_time(int(match[1])) != int(match[2]):
            _remove(name)
            removed.append(name)
    return removed


def destroy(names: Names) -> None:
    """Remove a lab's namespaces, and kill what still runs inside them. Safe to call twice."""
    for name in existing():
        if name.startswith(names.prefix + "-"):
            _remove(name)


def kill_inside(name: str) -> None:
    """Kill every process that lives in a lab's namespace, and wait until none does."""
    limit = time.monotonic() + _DEATH_SECONDS
    while time.monotonic() < limit:
        processes = read("ip", "netns", "pids", name, check=False).split()
        if not processes:
            return
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(int(process), signal.SIGKILL)
        time.sleep(0.01)


def _remove(name: str) -> None:
    kill_inside(name)
    # another lab's start may have removed the same leftover first
    read("ip", "netns", "delete", name, check=False)


def build(names: Names, settings: LabSettings) -> None:
    """Make all namespaces, links, switches and shapers.

    Raises:
        LabError: when the kernel refuses a step.
        LabUnavailable: when latency is asked for and the kernel has no netem.
    """
    for namespace in names.all(settings.ranks):
        read("ip", "netns", "add", namespace)
        write_sysctls(namespace, _QUIET | _TCP)
    if settings.latency_ms:
        _require_netem(names.switch)
    batch("ip", _switch_lines(settings), namespace=names.switch)
    for rank in range(settings.ranks):
        _build_host(names, settings, rank)
    batch("ip", _port_lines(settings), namespace=names.switch)
    batch("bridge", _forwarding_lines(settings), namespace=names.switch)
    batch("tc", _switch_shaping(settings), namespace=names.switch)
    if not settings.offloads:
        switch_offloads_off(names.switch, _ports(settings))


def _require_netem(namespace: str) -> None:
    try:
        batch("tc", ["qdisc add dev lo root netem delay 1ms"], namespace=namespace)
    except LabError as error:
        raise LabUnavailable(
            "latency_ms > 0 needs the queueing discipline netem, which this kernel does not have "
            f"({error}). Load the module sch_netem, use another kernel, or leave the latency at 0."
        ) from error


def _build_host(names: Names, settings: LabSettings, rank: int) -> None:
    """Give a rank its namespace's interface, address, neighbours and shaper."""
    shaper = Shaper(rate=settings.link_rate(rank), latency_ms=settings.latency_ms)
    # fixed neighbours: no ARP, so that nothing but the ranks' own traffic is counted
    neighbours = [
        f"neigh add {settings.address(other)} lladdr {settings.mac(other)} dev {INTERFACE} nud permanent"
        for other in range(settings.ranks)
        if other != rank
    ]
    lines = [
        f"link add {INTERFACE} mtu {MTU} address {settings.mac(rank)} type veth"
        f" peer name port{rank} mtu {MTU} netns {names.switch}",
        f"link set {INTERFACE} gso_max_size {shaper.segment}",
        f"addr add {settings.address(rank)}/24 dev {INTERFACE}",
        f"link set {INTERFACE} up",
        "link set lo up",
        *neighbours,
    ]
    batch("ip", lines, namespace=names.rank(rank))
    batch("tc", shaper.lines(INTERFACE), namespace=names.rank(rank))
    if not settings.offloads:
        switch_offloads_off(names.rank(rank), [INTERFACE])


def _has_uplinks(settings: LabSettings) -> bool:
    return settings.groups > 1


def _switch_lines(settings: LabSettings) -> list[str]:
    """Return the lines that make the switches: one per group, and a core between several."""
    switches = [f"group{group}" for group in range(settings.groups)]
    lines = []
    if _has_uplinks(settings):
        switches.append("core")
        lines += [
            f"link add up{group} mtu {MTU} type veth peer name down{group} mtu {MTU}"
            for group in range(settings.groups)
        ]
    for switch in switches:
        lines += [
            f"link add {switch} type bridge stp_state 0 mcast_snooping 0",
            f"link set {switch} up",
        ]
    return lines


def _ports(settings: LabSettings) -> dict[str, str]:
    """Return every port of every switch: port -> switch."""
    ports = {f"port{rank}": f"group{settings.group_of(rank)}" for rank in range(settings.ranks)}
    if _has_uplinks(settings):
        for group in range(settings.groups):
            ports |= {f"up{group}": f"group{group}", f"down{group}": "core"}
    return ports


def _port_lines(settings: LabSettings) -> list[str]:
    lines = []
    for port, switch in _ports(settings).items():
        lines += [
            f"link set {port} master {switch}",
            f"link set {port} type bridge_slave learning off flood off mcast_flood off",
            f"link set {port} up",
        ]
    return lines


def _forwarding_lines(settings: LabSettings) -> list[str]:
    """Return fixed forwarding entries, so that no frame is flooded to hosts it is not for."""
    lines = []
    for rank in range(settings.ranks):
        home = settings.group_of(rank)
        ports = [f"port{rank}"]
        if _has_uplinks(settings):
            ports.append(f"down{home}")
            ports += [f"up{group}" for group in range(settings.groups) if group != home]
        lines += [f"fdb add {settings.mac(rank)} dev {port} master static" for port in ports]
    return lines


def _switch_shaping(settings: LabSettings) -> list[str]:
    lines = []
    for rank in range(settings.ranks):
        lines += Shaper(rate=settings.link_rate(rank)).lines(f"port{rank}")
    if _has_uplinks(settings):
        uplink = Shaper(rate=parse_rate(settings.uplink_rate))
        for group in range(settings.groups):
            lines += uplink.lines(f"up{group}") + uplink.lines(f"down{group}")
    return lines
