"""Run ``python -m benchmarks.scaling``; see ``--help``."""

import argparse
import sys

from benchmarks import environment
from benchmarks.output import write_report
from benchmarks.scaling.count import Row, count_all, default_methods

SCHEMA = 1


def main(argv: list[str] | None = None) -> int:
    """Count, print a table and write JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument(
        "--model", default="resnet20", help="whose captured gradients are exchanged"
    )
    parser.add_argument("--workers", nargs="+", type=int, default=[4, 8, 16, 32, 64])
    parser.add_argument("--methods", nargs="+", default=default_methods())
    parser.add_argument("--density", type=float, default=0.004, help="k / d of all sparse methods")
    parser.add_argument("--json", metavar="PATH", help="write the result there; '-' is stdout")
    options = parser.parse_args(argv)
    rows = count_all(options.model, options.workers, options.methods, options.density)
    print(_table(rows, options.workers), file=sys.stderr)
    result = {
        "benchmark": "scaling",
        "schema": SCHEMA,
        "environment": environment.describe(threads=1),
        "density": options.density,
        "rows": [row.to_mapping() for row in rows],
    }
    write_report(result, options.json)
    return 0


def _table(rows: list[Row], workers: list[int]) -> str:
    lines = ["busiest link of one exchange: kB (messages in sequence)"]
    lines.append(f"{'method':18}" + "".join(f"{f'P={p}':>16}" for p in workers))
    for method in dict.fromkeys(row.method for row in rows):
        cells = [
            f"{row.predicted_bytes / 1e3:9.1f} ({row.predicted_messages:.0f})"
            for row in rows
            if row.method == method
        ]
        lines.append(f"{method:18}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
