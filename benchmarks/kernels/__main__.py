"""Run ``python -m benchmarks.kernels``; see ``--help``."""

import argparse
from itertools import product
from typing import Any

from benchmarks.kernels.check import check_kernels
from benchmarks.kernels.device import measure_device
from benchmarks.kernels.measure import Point, clock_name, measure
from benchmarks.output import begin, write_report

SCHEMA = 1
# The point at which the project promises figures, and the share of coordinates it selects there.
HEADLINE = Point(dimension=2**25, rows=5, columns=2**17, k=2**15)
ONE_IN = 2**10


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="only one small and the headline size")
    parser.add_argument("--json", metavar="PATH", help="write the result there; '-' is stdout")
    parser.add_argument("--threads", type=int, default=1, help="for kernels and baselines alike")
    parser.add_argument("--rounds", type=int, default=5, help="medians are taken over these")
    sizes = {"nargs": "+", "type": int}
    dimensions = [2**e for e in (18, 20, 22, 24, 25, 26)]
    parser.add_argument("--dimensions", **sizes, default=dimensions)
    parser.add_argument("--rows", **sizes, default=[3, 5, 9])
    parser.add_argument("--columns", **sizes, default=[2**14, 2**17, 2**20])
    return parser.parse_args(argv)


def _points(arguments: argparse.Namespace) -> list[Point]:
    if arguments.quick:
        return [Point(dimension=2**20, rows=5, columns=2**14, k=2**10), HEADLINE]
    grid = product(arguments.dimensions, arguments.rows, arguments.columns)
    return [Point(dimension=d, rows=r, columns=c, k=max(1, d // ONE_IN)) for d, r, c in grid]


def _headline(rows: list[dict[str, Any]], points: list[Point]) -> dict[str, Any]:
    """Return the figures programs read: at HEADLINE if it was measured, else the last point."""
    point = HEADLINE if HEADLINE in points else points[-1]
    size = (point.dimension, point.rows, point.columns)
    at_point = {
        row["operation"]: row
        for row in rows
        if (row["dimension"], row["rows"], row["columns"]) == size
    }
    encode, select = at_point["encode"], at_point["heavy_hitters"]
    nanoseconds = 1e9 / (point.dimension * point.rows)
    return {
        "headline_point": {"dimension": size[0], "rows": size[1], "columns": size[2], "k": point.k},
        "encode_over_read": encode["over_read"],
        "select_over_read": select["over_read"],
        "encode_vs_per_coordinate": encode["vs_per_coordinate"],
        "encode_vs_vectorised_loop": encode["vs_vectorised"],
        "encode_vs_torch_scatter": encode["vs_torch"],
        "top_k_vs_torch": at_point["top_k"]["vs_torch"],
        "read_gigabytes_per_second": encode["read_gigabytes_per_second"],
        "per_coordinate_ns": encode["seconds"]["per_coordinate"] * nanoseconds,
    }


def _format_row(row: dict[str, Any]) -> str:
    def ratio(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    baselines = (
        f"{name} {1e3 * seconds:.2f}"
        for name, seconds in row["seconds"].items()
        if name != "native"
    )
    return (
        f"{row['operation']:<14}{row['dimension']:>9}{row['rows']:>5}{row['columns']:>9}"
        f"{row['k']:>7}{1e3 * row['seconds']['native']:>10.3f}{ratio(row['over_read']):>10}"
        f"{ratio(row['vs_per_coordinate']):>12}{ratio(row['vs_torch']):>10}"
        f"   {', '.join(baselines)}"
    )


def main(argv: list[str] | None = None) -> None:
    """Check, measure, print the table and write the JSON."""
    arguments = _arguments(argv)
    points = _points(arguments)
    clock = clock_name(arguments.threads)
    described, out = begin(arguments.json, threads=arguments.threads, clock=clock)
    if arguments.device == "cuda":
        found = measure_device(arguments, out)
        write_report(
            {"benchmark": "kernels", "schema": SCHEMA, "environment": described, **found},
            arguments.json,
        )
        return
    for rows, columns in sorted({(p.rows, p.columns) for p in points}):
        check_kernels(rows, columns, arguments.threads)
    print("all kernels agree with the reference; times in ms", file=out)
    print(
        f"{'operation':<14}{'dimension':>9}{'rows':>5}{'columns':>9}{'k':>7}{'native':>10}"
        f"{'over read':>10}{'x per-coord':>12}{'x torch':>10}   baselines",
        file=out,
    )
    results: list[dict[str, Any]] = []
    for point in points:
        for row in measure(point, arguments.threads, arguments.rounds):
            results.append(row)
            print(_format_row(row), file=out, flush=True)
    headline = _headline(results, points)
    for key, value in headline.items():
        print(f"{key}: {value}", file=out)
    report = {
        "benchmark": "kernels",
        "schema": SCHEMA,
        **headline,
        "environment": described,
        "results": results,
    }
    write_report(report, arguments.json)


if __name__ == "__main__":
    main()
