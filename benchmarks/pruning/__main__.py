"""Run ``python -m benchmarks.pruning``; see ``--help``."""

import argparse
import statistics
import sys
import tempfile
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import torch

from benchmarks.output import begin, write_report
from benchmarks.pruning.toy import METHODS, Row, Setting, check, run_all
from gsdist.training import detect_launch, process_group

SCHEMA = 1


def main(argv: list[str] | None = None) -> int:
    """Train, print a table, write JSON, and fail when an expectation does not hold."""
    options = _parser().parse_args(argv)
    setting = Setting(
        seeds=options.seeds,
        epochs=options.epochs,
        images=options.images,
        compressed=options.gs_sgd,
    )
    torch.set_num_threads(1)
    launch = detect_launch()
    rows = []
    with process_group(launch, timedelta(minutes=5)):
        folder = _shared_folder()
        for row in run_all(setting, Path(folder), launch.world_size):
            rows.append(row)
            if launch.rank == 0:
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
    parser.add_argument(
        "--toy",
        action="store_true",
        required=True,
        help="nine methods on small Fashion-MNIST; about 12 minutes of one CPU",
    )
    default = Setting()
    parser.add_argument("--seeds", type=int, default=default.seeds)
    parser.add_argument("--epochs", type=int, default=default.epochs)
    parser.add_argument("--images", type=int, default=default.images)
    parser.add_argument(
        "--gs-sgd", action="store_true", help="compress gradients; run it under torchrun"
    )
    parser.add_argument("--json", metavar="PATH", help="write the result there; '-' is stdout")
    return parser


def _table(rows: list[Row]) -> str:
    lines = [
        "accuracy in percent after the last epoch, of the compact network",
        f"{'method':14}{'seeds':>24}{'mean':>8}{'sd':>6}{'MACs':>8}{'params':>8}"
        f"{'speed-up':>10}{'compression':>13}",
    ]
    for method in METHODS:
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
