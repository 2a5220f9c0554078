"""Notice signals at once, also while the main thread waits in a collective, where no Python handler runs.

SIGTERM asks for an orderly end, a second one ends the process on the spot. SIGUSR1 writes out the last
collectives.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from gsdist.collectives import FLIGHT_RECORDER

__all__ = ["EXIT_TERMINATED", "SignalWatch", "watch_signals"]

EXIT_TERMINATED = 128 + signal.SIGTERM


class SignalWatch:
    """Know whether this process has been asked to end."""

    def __init__(self) -> None:
        self.stop_requested = False

    def read(self, source: socket.socket) -> None:
        """Act on every signal, a byte each, until the other end is closed."""
        while numbers := source.recv(64):
            for number in numbers:
                if number == signal.SIGUSR1:
                    FLIGHT_RECORDER.dump("SIGUSR1")
                elif number == signal.SIGTERM:
                    self._terminate()

    def _terminate(self) -> None:
        if self.stop_requested:
            print("gsdist: SIGTERM again, leaving at once", file=sys.stderr, flush=True)
            os._exit(EXIT_TERMINATED)
        print("gsdist: SIGTERM, stopping after a step", file=sys.stderr, flush=True)
        self.stop_requested = True


@contextmanager
def watch_signals() -> Iterator[SignalWatch]:
    """Watch SIGTERM and SIGUSR1 for the time of the block; outside the main thread do nothing."""
    watch = SignalWatch()
    if threading.current_thread() is not threading.main_thread():
        yield watch
        return
    source, sink = socket.socketpair()
    sink.setblocking(False)
    # The interpreter writes to the socket from the C handler; the Python ones have nothing left to do.
    earlier_sink = signal.set_wakeup_fd(sink.fileno(), warn_on_full_buffer=False)
    earlier = {
        number: signal.signal(number, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGUSR1)
    }
    reader = threading.Thread(target=watch.read, args=(source,), name="gsdist-signals", daemon=True)
    reader.start()
    try:
        yield watch
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(earlier_sink)
        sink.close()
        reader.join()
        source.close()
