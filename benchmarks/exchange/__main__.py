"""Run ``python -m benchmarks.exchange``; see ``--help``.

What to keep in mind reading the numbers: all ranks share this machine's cores, so with more ranks than
cores computing takes turns, and a rank that waits for another's computing waits in a phase on the wire.
This is worst for methods that compute the same on all ranks, and spares those that compute on one, such as
a parameter server; `own core` projects what would be left if every rank had a core to itself. After a
pause a shaped link lets a millisecond's worth of bytes (24 kB at least) pass at once, which flatters the
smallest exchanges. All parameters are one bucket; nothing overlaps with a backward pass.
"""

import argparse
import sys
from dataclasses import asdict
from itertools import product
from typing import Any, TextIO

from benchmarks.exchange.cells import make_cells
from benchmarks.exchange.lab import describe_lab, run_in_lab
from benchmarks.exchange.methods import METHODS
from benchmarks.exchange.plan import Plan
from benchmarks.exchange.table import HEADER, format_cell
from benchmarks.gradients import SOURCES, CapturedGradients, load
from benchmarks.netlab import LabUnavailable, parse_rate
from benchmarks.output import begin, write_report

SCHEMA = 3
_QUICK = {
    "methods": [name for name in METHODS if name not in ("gs-sgd-16", "gs-sgd-paper-tree")],
    "models": ["resnet20", "gpt-1m"],
    "ranks": [2, 4],
    "rates": ["1gbit", "100mbit"],
}
_FULL = {
    "methods": list(METHODS),
    "models": ["resnet20", "gpt-1m", "vgg16-cifar", "resnet50"],
    "ranks": [2, 4, 8],
    "rates": ["100mbit", "1gbit", "unlimited"],
}


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exchange", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small models, P = 2 and 4, 5 minutes")
    parser.add_argument("--json", metavar="PATH", help="write the result there; '-' is stdout")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS))
    parser.add_argument("--models", nargs="+", choices=list(SOURCES))
    parser.add_argument("--ranks", nargs="+", type=int, metavar="P")
    parser.add_argument("--rates", nargs="+", help="such as 100mbit, 1gbit, unlimited")
    parser.add_argument("--density", type=float, default=0.004, help="k / d of all sparse methods")
    parser.add_argument("--seconds", type=float, help="per cell, after the least repetitions")
    parser.add_argument("--repetitions", type=int, default=5, help="the least of them")
    arguments = parser.parse_args(argv)
    for name, value in (_QUICK if arguments.quick else _FULL).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    if arguments.seconds is None:
        arguments.seconds = 0.6 if arguments.quick else 4.0
    return arguments


def _plan(arguments: argparse.Namespace, gradients: tuple[CapturedGradients, ...]) -> Plan:
    return Plan(
        methods=tuple(arguments.methods),
        gradients=gradients,
        density=arguments.density,
        seconds=arguments.seconds,
        least_repetitions=arguments.repetitions,
        most_repetitions=50,
        warm_up=2,
    )


def _print_cells(
    arguments: argparse.Namespace,
    gradients: tuple[CapturedGradients, ...],
    rate: str,
    reports: list[dict[str, Any]],
    out: TextIO,
) -> list[dict[str, Any]]:
    cells = make_cells(
        reports,
        rate=rate,
        bits_per_second=parse_rate(rate),
        dimensions={one.model: one.dimension for one in gradients},
        density=arguments.density,
    )
    print(f"calibration: {reports[0]['calibration']}\n{HEADER}", file=out)
    for cell in cells:
        print(format_cell(cell), file=out, flush=True)
    return cells


def main(argv: list[str] | None = None) -> int:
    """Measure all labs, print the table, write the JSON; return 1 if a cell is missing or wrong."""
    arguments = _arguments(argv)
    described, out = begin(arguments.json, threads=1)
    gradients = tuple(load(model, max(arguments.ranks)) for model in arguments.models)
    plan = _plan(arguments, gradients)
    labs: list[dict[str, Any]] = []
    cells: list[dict[str, Any]] = []
    for ranks, rate in product(arguments.ranks, arguments.rates):
        try:
            lab, reports = run_in_lab("benchmarks.exchange.worker", plan.text(), ranks, rate)
        except LabUnavailable as error:
            print(f"error: {error}", file=sys.stderr)
            return 3
        print(f"\n{describe_lab(lab)}", file=out, flush=True)
        labs.append(lab)
        if reports:
            lab |= {name: reports[0][name] for name in ("calibration", "link")}
            cells += _print_cells(arguments, gradients, rate, reports, out)
    sources = {model: asdict(SOURCES[model]) for model in arguments.models}
    report = {
        "benchmark": "exchange",
        "schema": SCHEMA,
        "environment": described,
        "sources": sources,
        "labs": labs,
        "cells": cells,
    }
    write_report(report, arguments.json)
    sound = all(cell["correct"] for cell in cells) and not any(lab["fault"] for lab in labs)
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
