"""Know how many more steps a method needs than dense training to reach the same loss.

The table beside this file is made from runs of the convergence suite by `python -m benchmarks.step_factors`
and names them. A factor compares the training loss at the end of a run with the step at which dense training
on the same batches had it. It comes from small networks and short runs: a lead, not a law.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

__all__ = ["StepFactor", "read_table", "step_factor"]

_FILE = "step_factors.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class StepFactor:
    """Hold a factor and how far it is from what was measured."""

    factor: float
    measured: bool
    """Whether runs on both sides of the compression were measured, with as many workers."""


@cache
def read_table() -> Mapping[str, Any]:
    """Return the shipped table: "sources", what was run, and "rows"."""
    table: Mapping[str, Any] = json.loads(files(__package__).joinpath(_FILE).read_text())
    return table


def step_factor(
    method: str, compression: float, workers: int, table: Mapping[str, Any] | None = None
) -> StepFactor | None:
    """Return how many times the steps of dense training a method needs; None: it was never measured.

    Between measured compressions the factor's logarithm is interpolated over that of the compression,
    starting from 1 at no compression; beyond the largest it follows the last stretch. Of the measured
    numbers of workers the nearest counts.
    """
    rows = [row for row in (table or read_table())["rows"] if row["method"] == method]
    if not rows:
        return None
    nearest = min({row["workers"] for row in rows}, key=lambda n: (abs(math.log(n / workers)), n))
    measured = sorted(
        (math.log(row["compression"]), math.log(row["factor"]))
        for row in rows
        if row["workers"] == nearest
    )
    points = [(0.0, 0.0), *measured]
    x = math.log(max(1.0, compression))
    right = next((i for i in range(1, len(points)) if points[i][0] >= x), len(points) - 1)
    (x0, y0), (x1, y1) = points[right - 1], points[right]
    y = y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return StepFactor(
        factor=math.exp(max(0.0, y)), measured=nearest == workers and x <= points[-1][0]
    )
