"""Run ``python -m benchmarks.step``; see ``--help``.

What to keep in mind reading the numbers: all ranks share this machine's cores, so computing takes turns
with more ranks than cores. Batches are drawn beforehand: loading data is not part of a step. `exposed` is
the median of a step less the same step without communication, which follows it; DDP's own broadcast of
batch normalisation's buffers is in both.
"""

import argparse
import json
import sys
from itertools import product
from typing import Any

from benchmarks.exchange.lab import describe_lab, run_in_lab
from benchmarks.gradients import SOURCES
from benchmarks.netlab import LabUnavailable
from benchmarks.output import begin, write_report
from benchmarks.step.cells import HEADER, format_cell, make_cells
from benchmarks.step.contender import CONTENDERS

SCHEMA = 1
_QUICK = {"models": ["resnet20", "vgg16-cifar"], "ranks": [2], "rates": ["1gbit"], "seconds": 0.5}
_FULL = {
    "models": ["resnet20", "vgg16-cifar"],
    "ranks": [2, 4],
    "rates": ["100mbit", "1gbit"],
    "seconds": 10.0,
}


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="P = 2 and 1 Gb/s only")
    parser.add_argument("--json", metavar="PATH", help="write the result there; '-' is stdout")
    every = list(CONTENDERS)
    parser.add_argument("--methods", nargs="+", choices=every, default=every, metavar="METHOD")
    parser.add_argument("--models", nargs="+", choices=list(SOURCES))
    parser.add_argument("--ranks", nargs="+", type=int, metavar="P")
    parser.add_argument("--rates", nargs="+", help="such as 100mbit, 1gbit, unlimited")
    parser.add_argument("--density", type=float, default=0.004, help="k / d of all sparse methods")
    parser.add_argument("--batch", type=int, default=8, help="examples per rank and step")
    parser.add_argument("--seconds", type=float, help="per cell, after the least steps")
    parser.add_argument("--steps", type=int, default=5, help="the least of them")
    arguments = parser.parse_args(argv)
    for name, value in (_QUICK if arguments.quick else _FULL).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    return arguments


def _plan(arguments: argparse.Namespace) -> str:
    return json.dumps(
        {
            "models": arguments.models,
            "contenders": arguments.methods,
            "density": arguments.density,
            "batch": arguments.batch,
            "seconds": arguments.seconds,
            "least_steps": arguments.steps,
            "most_steps": 100,
        }
    )


def main(argv: list[str] | None = None) -> int:
    """Measure all labs, print the table, write the JSON; return 1 if a cell is missing or wrong."""
    arguments = _arguments(argv)
    described, out = begin(arguments.json, threads=1)
    labs: list[dict[str, Any]] = []
    cells: list[dict[str, Any]] = []
    for ranks, rate in product(arguments.ranks, arguments.rates):
        try:
            lab, reports = run_in_lab("benchmarks.step.worker", _plan(arguments), ranks, rate)
        except LabUnavailable as error:
            print(f"error: {error}", file=sys.stderr)
            return 3
        labs.append(lab)
        print(f"\n{describe_lab(lab)}\n{HEADER}", file=out)
        if reports:
            batch, density = arguments.batch, arguments.density
            found = make_cells(reports, rate=rate, batch=batch, density=density)
            cells += found
            print("\n".join(map(format_cell, found)), file=out, flush=True)
    report = {
        "benchmark": "step",
        "schema": SCHEMA,
        "environment": described,
        "labs": labs,
        "cells": cells,
    }
    write_report(report, arguments.json)
    sound = all(cell["correct"] for cell in cells) and not any(lab["fault"] for lab in labs)
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
