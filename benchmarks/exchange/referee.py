"""Let the ranks inside a lab meet outside of it: start together and read the lab's counters.

Meetings go over a Unix socket, which network namespaces do not part, so that neither a barrier nor the
reading of counters puts a byte on the links that are measured.
"""

import json
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

from benchmarks.netlab import LabCounters

__all__ = ["Meeting", "Referee", "referee"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Meeting:
    """Hold what every rank learns when all have met."""

    payloads: list[Any]
    """What the ranks brought, in rank order."""
    links: list[tuple[int, int]]
    """Bytes (sent, received) of each rank's link so far."""

    def busiest_since(self, earlier: "Meeting") -> int:
        """Return the bytes of the busiest link in its busier direction between two meetings."""
        return max(
            now - then
            for ours, theirs in zip(self.links, earlier.links, strict=True)
            for now, then in zip(ours, theirs, strict=True)
        )


class Referee:
    """Stand at a rank's end of the meetings."""

    def __init__(self, address: str, key: str, rank: int) -> None:
        """Report to the referee that listens at `address`."""
        self._connection = Client(address, family="AF_UNIX", authkey=bytes.fromhex(key))
        self._connection.send_bytes(json.dumps(rank).encode())

    def meet(self, payload: Any = None) -> Meeting:
        """Wait for all ranks; exchange JSON values and learn the counters.

        Raises:
            EOFError: another rank has left.
        """
        self._connection.send_bytes(json.dumps(payload).encode())
        payloads, links = json.loads(self._connection.recv_bytes())
        return Meeting(payloads=payloads, links=[(sent, received) for sent, received in links])


@contextmanager
def referee(ranks: int, read: Callable[[], LabCounters]) -> Iterator[tuple[str, str]]:
    """Hold meetings of `ranks` ranks in a thread; give the address and key they need.

    `read` is called while all ranks wait.
    """
    key = secrets.token_hex(16)
    with TemporaryDirectory(prefix="gsdist-referee-") as folder:
        address = str(Path(folder) / "socket")
        with Listener(address, family="AF_UNIX", authkey=bytes.fromhex(key)) as listener:
            thread = Thread(target=_serve, args=(listener, ranks, read), daemon=True)
            thread.start()
            yield address, key


def _serve(listener: Listener, ranks: int, read: Callable[[], LabCounters]) -> None:
    connections: dict[int, Connection] = {}
    # A rank that leaves, or a listener that is closed, ends the meetings for all.
    with suppress(EOFError, OSError):
        try:
            while len(connections) < ranks:
                connection = listener.accept()
                connections[json.loads(connection.recv_bytes())] = connection
            ordered = [connections[rank] for rank in range(ranks)]
            while True:
                payloads = [json.loads(connection.recv_bytes()) for connection in ordered]
                links = [(link.sent_bytes, link.received_bytes) for link in read().ranks]
                answer = json.dumps((payloads, links)).encode()
                for connection in ordered:
                    connection.send_bytes(answer)
        finally:
            for connection in connections.values():
                connection.close()
