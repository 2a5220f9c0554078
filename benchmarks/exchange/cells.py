"""Turn what the ranks of a lab saw into one cell per method and model."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.exchange.prediction import Calibration, interface_bytes, predicted_seconds
from gsdist.collectives.cost_model import Transfer
from gsdist.reducers.statistics import wire_seconds

__all__ = ["make_cells"]


def make_cells(
    reports: Sequence[Mapping[str, Any]],
    *,
    rate: str,
    bits_per_second: float | None,
    dimensions: Mapping[str, int],
    density: float,
) -> list[dict[str, Any]]:
    """Combine the reports of all ranks of one lab, in rank order, into cells."""
    calibration = Calibration(**reports[0]["calibration"])
    cells = []
    for own in zip(*(report["cells"] for report in reports), strict=True):
        cell = {
            "method": own[0]["method"],
            "model": own[0]["model"],
            "d": dimensions[own[0]["model"]],
            "density": density,
            "ranks": len(reports),
            "rate": rate,
            "correct": own[0]["fault"] is None,
            "fault": own[0]["fault"],
        }
        if cell["correct"]:
            cell |= _figures(own, calibration, bits_per_second)
        cells.append(cell)
    return cells


def _figures(
    own: Sequence[Mapping[str, Any]], calibration: Calibration, rate: float | None
) -> dict[str, Any]:
    """Return all that was measured; phases are those of rank 0, which is the root of trees and gathers.

    `projected_seconds` is no measurement: the predicted time on the wire and the busiest rank's processor
    time, as if every rank had a core of its own.
    """
    ranks, root = len(own), own[0]["own"]
    wire = [wire_seconds(one["phases"]) for one in root]
    local = statistics.median(
        max(0.0, one["seconds"] - on_wire) for one, on_wire in zip(root, wire, strict=True)
    )
    low, median, high = np.percentile(own[0]["seconds"], (10, 50, 90)).tolist()
    local_cpu = max(statistics.median(r["local_cpu_seconds"] for r in one["own"]) for one in own)
    transfers = [
        (tuple(Transfer(**transfer) for transfer in one["transfers"]), one["exchanges"])
        for one in root
    ]
    return {
        "repetitions": len(root),
        "seconds": [round(seconds, 6) for seconds in own[0]["seconds"]],
        "planned": own[0]["planned"],
        "seconds_median": median,
        "seconds_p10": low,
        "seconds_p90": high,
        "wire_seconds": statistics.median(wire),
        "local_seconds": local,
        "phases": {
            name: statistics.median(one["phases"].get(name, 0.0) for one in root)
            for name in sorted({name for one in root for name in one["phases"]})
        },
        "local_cpu_seconds": local_cpu,
        "cpu_seconds": max(statistics.median(r["cpu_seconds"] for r in one["own"]) for one in own),
        "payload_bytes": max(
            round(statistics.mean(r["payload_bytes"] for r in one["own"])) for one in own
        ),
        "interface_bytes": statistics.mean(own[0]["interface_bytes"]),
        "predicted_bytes": statistics.mean(
            interface_bytes(every, ranks, calibration.bytes_per_message) / count
            for every, count in transfers
        ),
        **{
            name: statistics.median(
                predicted_seconds(every, ranks, calibration, rate=rate) / count + seconds
                for every, count in transfers
            )
            for name, seconds in (("predicted_seconds", local), ("projected_seconds", local_cpu))
        },
        "collectives": root[-1]["transfers"],
        "exchanges_per_repetition": root[-1]["exchanges"],
    }
