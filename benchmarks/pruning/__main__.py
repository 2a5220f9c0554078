"""Run ``python -m benchmarks.pruning``; see ``--help``."""

import argparse
import statistics
import sys
import tempfile
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from benchmarks.output import begin, write_report
from benchmarks.pruning.calibration import PUBLISHED, calibrate
from benchmarks.pruning.calibration import table as calibration_table
from benchmarks.pruning.speed import Speed, speedups
from benchmarks.pruning.toy import METHODS, Row, Setting, check, run_all
from gsdist.training import detect_launch, process_group

SCHEMA = 1


def main(argv: list[str] | None = None) -> int:
    """Measure, print a table and write JSON; --toy fails when an expectation does not hold."""
    options = _parser().parse_args(argv)
    torch.set_num_threads(1)
    if options.toy:
        return _toy(options)
    environment, out = begin(options.json, threads=1)
    rows: list[Any]
    if options.speed:
        rows = list(speedups())
        print(_speed_table(rows), file=out)
    else:
        rows = list(calibrate(dict(_named_file(text) for text in options.calibrate)))
        print(calibration_table(rows), file=out)
    report = {
        "benchmark": "pruning",
        "schema": SCHEMA,
        "environment": environment,
        "rows": [asdict(row) for row in rows],
    }
    write_report(report, options.json)
    return 0


def _toy(options: argparse.Namespace) -> int:
    setting = Setting(
        seeds=options.seeds,
        epochs=options.epochs,
        images=options.images,
        methods=("dense", *options.methods),
        compressed=options.gs_sgd,
    )
    launch = detect_launch()
    rows = []
    with process_group(launch, timedelta(minutes=5)):
        folder = _shared_folder()
        for row in run_all(setting, Path(folder), launch.world_size):
            rows.append(row)
            print(
                f"seed {row.seed}: {row.method:14} {row.compact_accuracy:.2f} %",
                file=sys.stderr,
                flush=True,
            )
    if launch.rank:
        return 0
    environment, out = begin(options.json, threads=1)
    verdicts = check(rows)
    print(_table(rows), file=out)
    for name, holds in verdicts.items():
        print(f"{'holds' if holds else 'FAILS'}: {name}", file=out)
    report = {
        "benchmark": "pruning",
        "schema": SCHEMA,
        "environment": environment,
        "setting": {**asdict(setting), "workers": launch.world_size},
        "rows": [asdict(row) for row in rows],
        "expectations": verdicts,
    }
    write_report(report, options.json)
    return 0 if all(verdicts.values()) else 1


def _shared_folder() -> str:
    """Make a folder on rank 0 and tell all ranks. Collectives: one gather."""
    from gsdist.collectives import gather_json

    own = tempfile.mkdtemp(prefix="gsdist-pruning-")
    return str(gather_json(own)[0])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pruning", description=__doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument(
        "--toy",
        action="store_true",
        help="nine methods on small Fashion-MNIST; about 12 minutes of one CPU",
    )
    action.add_argument(
        "--speed", action="store_true", help="time networks cut to half of their operations"
    )
    action.add_argument(
        "--calibrate",
        nargs="+",
        metavar="MODEL=FILE",
        help=f"compare CPMC with what is published, on trained weights of {', '.join(PUBLISHED)}",
    )
    default = Setting()
    parser.add_argument("--seeds", type=int, default=default.seeds)
    parser.add_argument("--epochs", type=int, default=default.epochs)
    parser.add_argument("--images", type=int, default=default.images)
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=list(METHODS)[1:],
        default=list(METHODS)[1:],
        help="those to run besides dense (default: all)",
    )
    parser.add_argument(
        "--gs-sgd", action="store_true", help="compress gradients; run it under torchrun"
    )
    parser.add_argument("--json", metavar="PATH", help="write the result there; '-' is stdout")
    return parser


def _named_file(text: str) -> tuple[str, Path]:
    name, separator, path = text.partition("=")
    if name not in PUBLISHED or not separator:
        raise SystemExit(
            f"--calibrate takes MODEL=FILE with one of {', '.join(PUBLISHED)}, got {text!r}"
        )
    return name, Path(path)


def _speed_table(rows: list[Speed]) -> str:
    lines = [f"{'model':20}{'layout':10}{'MACs':>8}{'params':>8}{'speed-up':>10}"]
    for row in rows:
        lines.append(
            f"{row.model:20}{row.layout:10}{row.macs_ratio:8.3f}{row.params_ratio:8.3f}"
            f"{row.speedup:9.2f}x"
        )
    return "\n".join(lines)


def _table(rows: list[Row]) -> str:
    lines = [
        "accuracy in percent after the last epoch, of the compact network",
        f"{'method':14}{'seeds':>24}{'mean':>8}{'sd':>6}{'MACs':>8}{'params':>8}"
        f"{'speed-up':>10}{'compression':>13}",
    ]
    for method in dict.fromkeys(row.method for row in rows):
        own = [row for row in rows if row.method == method]
        accuracies = [row.compact_accuracy for row in own]
        spread = f"{statistics.stdev(accuracies):.2f}" if len(own) > 1 else "-"
        seeds = " / ".join(f"{value:.2f}" for value in accuracies)
        lines.append(
            f"{method:14}{seeds:>24}{statistics.fmean(accuracies):8.2f}{spread:>6}"
            f"{statistics.fmean(row.macs_ratio for row in own):8.3f}"
            f"{statistics.fmean(row.params_ratio for row in own):8.3f}"
            f"{statistics.fmean(row.speedup for row in own):9.2f}x"
            f"{statistics.fmean(row.compression for row in own):12.1f}x"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
