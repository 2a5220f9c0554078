"""Turn what the ranks of a lab saw into one cell per model and contender, and print it."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["HEADER", "format_cell", "make_cells"]

HEADER = (
    f"{'model':<12}{'method':<18}{'ms':>10}{'p10':>9}{'p90':>9}{'exposed':>9}{'forward':>9}{'backward':>9}"
    f"{'optim':>8}{'cpu':>9}{'peak MB':>9}{'payload':>11}{'interface':>11}{'buffers':>10}"
)


def make_cells(
    reports: Sequence[Mapping[str, Any]], *, rate: str, batch: int, density: float
) -> list[dict[str, Any]]:
    """Combine the reports of all ranks of one lab, in rank order, into cells."""
    cells = []
    for own in zip(*(report["cells"] for report in reports), strict=True):
        first = own[0]
        cell = {
            "method": first["method"],
            "model": first["model"],
            "d": first["d"],
            "density": density,
            "ranks": len(reports),
            "rate": rate,
            "batch": batch,
            "correct": first["fault"] is None,
            "fault": first["fault"],
        }
        cells.append(cell | (_figures(own) if cell["correct"] else {}))
    return cells


def _figures(own: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return all that was measured.

    `ddp_buffer_bytes` is what DDP itself sends (the buffers of batch normalisation, broadcast in every
    forward pass), measured where nothing else is exchanged; it is part of `interface_bytes`. Exposed
    communication is a step less the step without communication that followed it, both of the slowest rank.
    `peak_bytes` is the highest resident memory of the first steps less that before the model was made: model,
    optimizer, activations, and what the exchange needs.
    """
    first, steps = own[0], own[0]["own"]
    low, median, high = np.percentile(first["seconds"], (10, 50, 90)).tolist()
    pairs = zip(first["seconds"], first["seconds_alone"], strict=True)
    return {
        "steps": len(steps),
        "seconds_median": median,
        "seconds_p10": low,
        "seconds_p90": high,
        "seconds_alone_median": statistics.median(first["seconds_alone"]),
        "exposed_seconds": statistics.median(whole - alone for whole, alone in pairs),
        **{
            f"{part}_seconds": statistics.median(step[part] for step in steps)
            for part in ("forward", "backward", "optimizer")
        },
        "phases": {
            name: statistics.median(step["phases"].get(name, 0.0) for step in steps)
            for name in sorted({name for step in steps for name in step["phases"]})
        },
        "cpu_seconds": max(statistics.median(s["cpu_seconds"] for s in one["own"]) for one in own),
        "peak_bytes": max(one["peak_bytes"] for one in own),
        "payload_bytes": max(
            round(statistics.mean(step["payload_bytes"] for step in one["own"])) for one in own
        ),
        "interface_bytes": statistics.mean(first["interface_bytes"]),
        "ddp_buffer_bytes": statistics.mean(first["interface_bytes_alone"]),
    }


def format_cell(cell: Mapping[str, Any]) -> str:
    """Return one line: milliseconds and bytes, or what is wrong."""
    start = f"{cell['model']:<12}{cell['method']:<18}"
    if not cell["correct"]:
        return f"{start}NOT CORRECT: {cell['fault']}"
    times = (
        ("seconds_median", 10),
        ("seconds_p10", 9),
        ("seconds_p90", 9),
        ("exposed_seconds", 9),
        ("forward_seconds", 9),
        ("backward_seconds", 9),
        ("optimizer_seconds", 8),
        ("cpu_seconds", 9),
    )
    line = start + "".join(f"{1e3 * cell[key]:>{width}.2f}" for key, width in times)
    line += f"{cell['peak_bytes'] / 1e6:>9.0f}{cell['payload_bytes']:>11}"
    return line + f"{cell['interface_bytes']:>11.0f}{cell['ddp_buffer_bytes']:>10.0f}"
