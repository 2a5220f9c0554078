"""Make the planner's table of step factors from results of the convergence suite.

Run ``python -m benchmarks.step_factors benchmarks/results/convergence-resnet8-p*.json``. A run's factor is
the step at which dense training, on the same batches and schedule, had the training loss that the method ends
with, divided into the step at which dense training had its own final loss (near the last; noise makes it a
little less). Losses are means over 40 steps, made never to rise.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environment import ROOT

__all__ = ["equivalent_dense_step", "factors_of", "make_table"]

TARGET = ROOT / "gsdist" / "planner" / "step_factors.json"
_DENSE = "dense"
_NO_METHOD = "oracle"
_WINDOW = 40
"""Steps over which a training loss is averaged."""


def equivalent_dense_step(dense: Sequence[float], final: float, window: int = _WINDOW) -> float:
    """Return the step at which the mean of `window` dense losses first fell to `final`; at most the last."""
    means = np.convolve(dense, np.ones(window) / window, "valid")
    reached = np.flatnonzero(means <= final)
    return float(reached[0] + window) if len(reached) else float(len(dense))


def factors_of(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one row per run of a result that has a dense run on the same batches beside it."""
    rows = result["rows"]
    dense = {(r["workers"], r["seed"]): r for r in rows if r["method"] == _DENSE}
    found = []
    for row in rows:
        beside = dense.get((row["workers"], row["seed"]))
        if beside is None or row["method"] in (_DENSE, _NO_METHOD) or ":" in row["method"]:
            continue
        losses = beside["curves"]["loss"]
        steps = [
            equivalent_dense_step(losses, statistics.fmean(run["curves"]["loss"][-_WINDOW:]))
            for run in (beside, row)
        ]
        found.append(
            {
                "method": row["method"],
                "workers": row["workers"],
                "budget": row["budget"],
                "compression": row["wire_compression"],
                "factor": max(1.0, steps[0] / steps[1]),
            }
        )
    return found


def make_table(results: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Return the table: geometric means over seeds and workloads, and where they come from."""
    groups: dict[tuple[str, int, float], list[dict[str, Any]]] = {}
    sources = []
    for name, result in results:
        environment, training = result["environment"], result["training"]
        sources.append(
            {"file": name}
            | {key: environment[key] for key in ("commit", "date", "cpu")}
            | {key: training[key] for key in ("workload", "steps", "global_batch")}
        )
        for row in factors_of(result):
            groups.setdefault((row["method"], row["workers"], row["budget"]), []).append(row)

    def mean(rows: list[dict[str, Any]], key: str) -> float:
        return round(math.exp(statistics.fmean(math.log(row[key]) for row in rows)), 4)

    return {
        "sources": sources,
        "rows": [
            {
                "method": method,
                "workers": workers,
                "compression": mean(rows, "compression"),
                "factor": mean(rows, "factor"),
                "runs": len(rows),
            }
            for (method, workers, _), rows in sorted(groups.items())
        ],
    }


def main(argv: list[str] | None = None) -> int:
    """Write the table and print it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step_factors", description=__doc__)
    parser.add_argument(
        "results", nargs="+", type=Path, help="JSON files of benchmarks.convergence"
    )
    parser.add_argument("--output", type=Path, default=TARGET, metavar="PATH")
    options = parser.parse_args(argv)
    table = make_table((path.name, json.loads(path.read_text())) for path in options.results)
    options.output.write_text(json.dumps(table, indent=1) + "\n")
    print(f"{'method':<16}{'workers':>8}{'compression':>13}{'factor':>8}{'runs':>6}")
    for row in table["rows"]:
        print(
            f"{row['method']:<16}{row['workers']:>8}{row['compression']:>13.1f}{row['factor']:>8.2f}"
            f"{row['runs']:>6}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
