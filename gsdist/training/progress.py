"""Show how far a run is: a bar in a terminal, a few plain lines in a log, nothing on other ranks."""

import sys
import time
from typing import Any, Protocol, TextIO

__all__ = ["BarProgress", "LineProgress", "Progress", "SilentProgress", "open_progress"]


class Progress(Protocol):
    """Take news from the training loop."""

    def advance(self, step: int, loss: float | None) -> None:
        """Say that `step` steps are done; `loss` is the newest logged one."""

    def note(self, text: str) -> None:
        """Say something on a line of its own."""

    def close(self) -> None:
        """Leave the terminal tidy."""


class SilentProgress:
    """Say nothing."""

    def advance(self, step: int, loss: float | None) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""

    def close(self) -> None:
        """Do nothing."""


class LineProgress:
    """Print a line about every twentieth of the run, for logs and pipes."""

    def __init__(self, total: int, *, label: str, start: int = 0, stream: TextIO) -> None:
        self._total = total
        self._start = start
        self._label = label
        self._stream = stream
        self._every = max(1, total // 20)
        self._begun = time.monotonic()

    def advance(self, step: int, loss: float | None) -> None:
        """Print a line when the step is due."""
        if step % self._every and step != self._total:
            return
        rate = (step - self._start) / max(1e-9, time.monotonic() - self._begun)
        shown = "" if loss is None else f"  loss {loss:.4f}"
        self.note(f"step {step}/{self._total}{shown}  {rate:.1f} steps/s")

    def note(self, text: str) -> None:
        """Print the text."""
        print(f"[{self._label}] {text}", file=self._stream, flush=True)

    def close(self) -> None:
        """Do nothing."""


class BarProgress:
    """Draw a tqdm bar."""

    def __init__(self, total: int, *, label: str, start: int = 0, stream: TextIO) -> None:
        from tqdm import tqdm

        self._bar: Any = tqdm(
            total=total, initial=start, desc=label, unit="step", file=stream, dynamic_ncols=True
        )

    def advance(self, step: int, loss: float | None) -> None:
        """Move the bar."""
        if loss is not None:
            self._bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
        self._bar.update(step - self._bar.n)

    def note(self, text: str) -> None:
        """Print the text above the bar."""
        self._bar.write(text, file=self._bar.fp)

    def close(self) -> None:
        """Leave the bar where it stands."""
        self._bar.close()


def open_progress(
    total: int, *, enabled: bool, label: str, start: int = 0, stream: TextIO | None = None
) -> Progress:
    """Return what fits the stream (default: standard error)."""
    stream = sys.stderr if stream is None else stream
    if not enabled:
        return SilentProgress()
    kind = BarProgress if stream.isatty() else LineProgress
    return kind(total, label=label, start=start, stream=stream)
