"""Run ``python -m benchmarks.graph``; see ``--help``."""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.graph.runs import (
    COMPRESSION,
    MODELS,
    compression_runs,
    link_runs,
    model_runs,
    rows_of,
)
from benchmarks.graph.step import time_steps
from benchmarks.output import begin, write_report
from gsdist.training import RunSummary, detect_launch, process_group

SCHEMA = 1
_SHOWN = ("macro_f1", "micro_f1", "nmi", "ari", "auc", "ap")


def main(argv: list[str] | None = None) -> int:
    """Measure one thing, print a table and write JSON."""
    options = _parser().parse_args(argv)
    torch.set_num_threads(options.threads)
    environment, out = begin(options.json, threads=options.threads)
    report: dict[str, Any] = {
        "benchmark": "graph",
        "schema": SCHEMA,
        "environment": environment,
        "what": options.what,
    }
    if options.what == "step":
        report["graph_rows"] = time_steps(options.repetitions)
        for name, row in report["graph_rows"].items():
            print(
                f"{name:46}{row['milliseconds']:9.1f} ms{row['processor_milliseconds']:9.1f} ms"
                f"{row['speedup']:8.1f}x",
                file=out,
            )
        write_report(report, options.json)
        return 0
    results: dict[str, list[RunSummary]] = defaultdict(list)
    with process_group(detect_launch(), timedelta(minutes=30)):
        first = dist.get_rank() == 0
        for name, summary in _runs(options):
            results[name].append(summary)
            if first:
                # After every run, so that one cut short leaves what it has.
                report["graph_rows"] = rows_of(results)
                write_report(report, options.json if options.json != "-" else None)
                print(f"{name}: {100 * summary.primary:.2f} %", file=sys.stderr, flush=True)
    if first:
        print(_table(report["graph_rows"]), file=out)
        if options.json == "-":
            write_report(report, "-")
    return 0


def _runs(options: argparse.Namespace) -> Iterator[tuple[str, RunSummary]]:
    steps = {} if options.steps is None else {"steps": options.steps}
    folder = options.folder / options.what
    if options.what == "models":
        return model_runs(options.models, options.seeds, options.data, folder, **steps)
    if options.what == "links":
        return link_runs(options.seeds, options.data, folder, **steps)
    return compression_runs(options.methods, options.seeds, options.data, folder, **steps)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.graph", description=__doc__)
    parser.add_argument(
        "what",
        choices=("models", "links", "compression", "step"),
        help="models: against HAN, HGT and R-GCN; links: link prediction; compression: gs-SGD against "
        "dense, under torchrun; step: seconds per step against the released form",
    )
    parser.add_argument("--data", default="films")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument(
        "--steps", type=int, help="steps of every run; default: those of the preset"
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--methods", nargs="+", choices=COMPRESSION, default=list(COMPRESSION))
    parser.add_argument("--repetitions", type=int, default=5, help="steps that are timed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("runs/graph"))
    parser.add_argument("--json", metavar="PATH", help="write the result there; '-' is stdout")
    return parser


def _table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    metrics = [name for name in _SHOWN if name in next(iter(rows.values()))["mean"]]
    lines = [f"{'':54}" + "".join(f"{name:>16}" for name in metrics) + f"{'bytes':>9}"]
    for name, row in rows.items():
        cells = ""
        for metric in metrics:
            spread = row["sd"][metric]
            shown = f"{100 * row['mean'][metric]:.2f}"
            cells += f"{shown if spread is None else f'{shown} +- {100 * spread:.2f}':>16}"
        lines.append(f"{name:54}{cells}{row['compression']:8.1f}x")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
