"""Compare runs on one HTML page: `gsdist report RUN...`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Read the summaries and write the page."""
    parser = argparse.ArgumentParser(
        prog="gsdist report",
        description="Compare training runs on one self-contained HTML page.\n"
        "The first run with the dense reducer is the baseline.",
        epilog="example:\n  gsdist report runs/dense runs/gs-sgd --output report.html",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run directory or summary JSON file"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("report.html"),
        help="page to write (default: report.html)",
    )
    options = parser.parse_args(arguments)

    from gsdist.training.report import write_report
    from gsdist.training.summary import read_summaries

    summaries = [summary for run in options.runs for summary in read_summaries(run)]
    write_report(summaries, options.output)
    print(options.output)
    return 0
