"""Watch processes that a test expects to be gone."""

import time
from pathlib import Path

__all__ = ["is_gone"]


def is_gone(process: int, within: float = 10.0) -> bool:
    """Say whether a killed process ends within so many seconds; the kernel takes its time."""
    limit = time.monotonic() + within
    while _is_running(process):
        if time.monotonic() >= limit:
            return False
        time.sleep(0.02)
    return True


def _is_running(process: int) -> bool:
    try:
        # a killed child waits for its new parent's attention as a zombie
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
