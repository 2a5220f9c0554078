"""Read what the queueing disciplines of a namespace sent, over one netlink socket that stays in it.

They count real frames even where the kernel passes super-frames, which interface statistics do not; and
asking the kernel takes microseconds, where starting `tc` takes milliseconds.
"""

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.netlab.errors import LabError
from benchmarks.netlab.kernel import in_namespace

__all__ = ["QueueReader", "QueueTotals", "root_queues"]

_NETLINK_ROUTE = 0
_RTM_GETQDISC, _NLMSG_ERROR, _NLMSG_DONE = 38, 2, 3
_REQUEST_DUMP = 0x301
_ROOT = 0xFFFFFFFF
_TCA_STATS = 3
_HEADER = struct.Struct("=IHHII")
_TCMSG = struct.Struct("=BxxxiIII")
_ATTRIBUTE = struct.Struct("=HH")
_STATS = struct.Struct("=QII")
_BUFFER = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueTotals:
    """Hold what one queueing discipline sent since it was made."""

    bytes: int
    packets: int
    drops: int


class QueueReader:
    """Read the outermost queueing discipline of every interface of one namespace."""

    def __init__(self, namespace: str) -> None:
        """Open the socket; the namespace's interfaces must exist by now."""
        self._socket, self._names = in_namespace(namespace, _open)

    def read(self) -> dict[str, QueueTotals]:
        """Return interface -> totals.

        Raises:
            LabError: when the kernel answers with an error.
        """
        request = _TCMSG.pack(0, 0, 0, 0, 0)
        self._socket.send(
            _HEADER.pack(_HEADER.size + len(request), _RTM_GETQDISC, _REQUEST_DUMP, 1, 0) + request
        )
        totals: dict[str, QueueTotals] = {}
        while True:
            answer = self._socket.recv(_BUFFER)
            totals |= {self._names[index]: found for index, found in root_queues(answer)}
            if _is_last(answer):
                return totals

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def _open() -> tuple[socket.socket, dict[int, str]]:
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_ROUTE)
    netlink.settimeout(5)
    return netlink, dict(socket.if_nameindex())


def _messages(answer: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position < len(answer):
        length, kind, *_ = _HEADER.unpack_from(answer, position)
        yield kind, answer[position + _HEADER.size : position + length]
        position += -(-length // 4) * 4


def _is_last(answer: bytes) -> bool:
    for kind, body in _messages(answer):
        if kind == _NLMSG_ERROR:
            raise LabError(
                f"the kernel refused to list its queues: error {struct.unpack('=i', body[:4])}"
            )
        if kind == _NLMSG_DONE:
            return True
    return False


def root_queues(answer: bytes) -> Iterator[tuple[int, QueueTotals]]:
    """Yield (interface index, totals) of the outermost queueing disciplines in one netlink answer."""
    for kind, body in _messages(answer):
        if kind in (_NLMSG_ERROR, _NLMSG_DONE):
            continue
        _, index, _, parent, _ = _TCMSG.unpack_from(body)
        if parent != _ROOT:
            continue
        position = _TCMSG.size
        while position < len(body):
            length, attribute = _ATTRIBUTE.unpack_from(body, position)
            if attribute == _TCA_STATS:
                totals = _STATS.unpack_from(body, position + _ATTRIBUTE.size)
                yield index, QueueTotals(bytes=totals[0], packets=totals[1], drops=totals[2])
            position += -(-length // 4) * 4
