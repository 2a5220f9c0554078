"""Measure the rates of paths between ranks by raw TCP streams, all at the same time."""

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

from benchmarks.netlab.errors import LabError
from benchmarks.netlab.kernel import in_namespace

__all__ = ["Path", "RateMeasurement", "stream"]

_T = TypeVar("_T")
_PORT = 29400
_CHUNK = 1 << 18
_WARM_UP_SECONDS = 0.3
_STALL_SECONDS = 5.0
_IN_FLIGHT_SECONDS = 0.02
_MIN_IN_FLIGHT = 1 << 17


@dataclass(frozen=True, kw_only=True, slots=True)
class RateMeasurement:
    """Compare the rate a path achieved with the rate asked for, in bits per second of whole frames."""

    source: int
    destination: int
    asked: float | None
    """Rate of the slowest link on the way, None when unlimited."""
    achieved: float
    """What passed the slowest link, acknowledgements of a stream the other way included."""

    @property
    def relative_error(self) -> float:
        """Return (achieved - asked) / asked, 0 when nothing was asked."""
        return 0.0 if self.asked is None else self.achieved / self.asked - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Path:
    """Name the two ends of a stream."""

    source: str
    """Namespace that sends."""
    destination: str
    """Namespace that receives; of one measurement's paths, only one may end in it."""
    address: str
    """Address of the destination."""
    rate: float | None
    """Bits per second of the slowest link, None when unlimited."""


def stream(
    paths: Sequence[Path], read: Callable[[], _T], *, seconds: float
) -> tuple[_T, _T, float]:
    """Stream over all paths at once; return two readings of counters and the seconds between them.

    Nothing of the streams is under way any more on return.

    Raises:
        LabError: when a stream breaks or stands still for five seconds.
    """
    stop = threading.Event()
    errors: list[str] = []
    with ExitStack() as stack:
        for path in paths:
            stack.enter_context(_one_stream(path, stop, errors))
        stop.wait(_WARM_UP_SECONDS)
        start, before = time.monotonic(), read()
        stop.wait(seconds)
        end, after = time.monotonic(), read()
    if errors:
        raise LabError("; ".join(errors))
    return before, after, end - start


@contextmanager
def _one_stream(path: Path, stop: threading.Event, errors: list[str]) -> Iterator[None]:
    with (
        in_namespace(path.destination, lambda: _listen(path.address)) as listener,
        in_namespace(path.source, lambda: _sender(path.rate)) as sender,
    ):
        try:
            sender.connect((path.address, _PORT))
            receiver, _ = listener.accept()
        except OSError as error:
            raise LabError(
                f"no connection from {path.source} to {path.destination}: {error}"
            ) from error
        with receiver:
            receiver.settimeout(_STALL_SECONDS)
            threads = [
                threading.Thread(target=_send, args=(sender, stop), daemon=True),
                threading.Thread(target=_receive, args=(receiver, stop, errors, path), daemon=True),
            ]
            try:
                for thread in threads:
                    thread.start()
                yield
            finally:
                # one stream that ends ends all, also when another could not be started
                stop.set()
                for thread in threads:
                    if thread.ident is not None:
                        thread.join()


def _listen(address: str) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.settimeout(_STALL_SECONDS)
    listener.bind((address, _PORT))
    listener.listen(1)
    return listener


def _sender(rate: float | None) -> socket.socket:
    sender = socket.socket()
    sender.settimeout(_STALL_SECONDS)
    if rate is not None:
        # what is under way at the end must still arrive, so keep that short
        in_flight = max(_MIN_IN_FLIGHT, int(rate / 8 * _IN_FLIGHT_SECONDS))
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, in_flight)
    return sender


def _send(sender: socket.socket, stop: threading.Event) -> None:
    chunk = bytes(_CHUNK)
    # a broken stream is the receiver's to report
    with suppress(OSError):
        while not stop.is_set():
            sender.send(chunk)
        sender.shutdown(socket.SHUT_WR)
        # returns when the other side has closed too
        sender.recv(1)


def _receive(receiver: socket.socket, stop: threading.Event, errors: list[str], path: Path) -> None:
    buffer = bytearray(_CHUNK)
    try:
        while receiver.recv_into(buffer):
            pass
        if not stop.is_set():
            errors.append(f"the stream from {path.source} to {path.destination} ended early")
    except OSError as error:
        errors.append(f"the stream from {path.source} to {path.destination} broke: {error}")
    # the sender waits for this
    receiver.close()
