"""Print cells for people.

`own core` is `projected_seconds`, as if every rank had a core to itself: no measurement.
"""

from collections.abc import Mapping
from typing import Any

__all__ = ["HEADER", "format_cell"]

HEADER = (
    f"{'model':<12}{'method':<18}{'ms':>10}{'p10':>9}{'p90':>9}{'wire':>9}{'local':>9}{'merge':>8}"
    f"{'cpu':>9}{'predicted':>10}{'own core':>10}{'payload':>12}"
    f"{'interface':>12}{'predicted':>12}{'error':>8}"
)


def format_cell(cell: Mapping[str, Any]) -> str:
    """Return one line: milliseconds and bytes, or what is wrong with the method."""
    start = f"{cell['model']:<12}{cell['method']:<18}"
    if not cell["correct"]:
        return f"{start}NOT CORRECT: {cell['fault']}"
    merge = sum(cell["phases"].get(name, 0.0) for name in ("merge", "select"))
    times = (
        ("seconds_median", 10),
        ("seconds_p10", 9),
        ("seconds_p90", 9),
        ("wire_seconds", 9),
        ("local_seconds", 9),
    )
    line = start + "".join(f"{1e3 * cell[key]:>{width}.2f}" for key, width in times)
    line += f"{1e3 * merge:>8.2f}{1e3 * cell['cpu_seconds']:>9.2f}"
    line += f"{1e3 * cell['predicted_seconds']:>10.2f}{1e3 * cell['projected_seconds']:>10.2f}"
    line += f"{cell['payload_bytes']:>12}"
    error = cell["interface_bytes"] / cell["predicted_bytes"] - 1
    line += f"{cell['interface_bytes']:>12.0f}{cell['predicted_bytes']:>12.0f}{error:>8.1%}"
    return line
