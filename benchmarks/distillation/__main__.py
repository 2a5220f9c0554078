"""Run ``python -m benchmarks.distillation``; see ``--help``."""

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from benchmarks.distillation.acceptance import METHODS, Result, Setting, check, run_all
from benchmarks.distillation.published import compare, table
from benchmarks.output import begin, write_report
from gsdist.training import detect_launch, process_group
from gsdist.training.summary import read_summaries

SCHEMA = 1


def main(argv: list[str] | None = None) -> int:
    """Train or compare runs, print a table, write JSON, and fail when an expectation does not hold."""
    options = _parser().parse_args(argv)
    if options.runs:
        print(table(compare(run for path in options.runs for run in read_summaries(path))))
        return 0
    setting = Setting(
        seeds=options.seeds,
        per_class=options.per_class,
        epochs=options.epochs,
        teacher_epochs=options.teacher_epochs,
    )
    torch.set_num_threads(1)
    environment, out = begin(options.json, threads=1)
    accuracies: dict[str, list[float]] = defaultdict(list)
    compression: dict[str, list[float]] = defaultdict(list)
    with (
        tempfile.TemporaryDirectory() as folder,
        process_group(detect_launch(), timedelta(minutes=5)),
    ):
        for seed, method, summary in run_all(setting, Path(folder)):
            print(f"seed {seed}: {method:18} {100 * summary.primary:.2f} %", file=sys.stderr)
            accuracies[method].append(100 * summary.primary)
            compression[method].append(summary.compression)
    teacher = accuracies["teacher"][0]
    results = {
        method: Result(accuracies=accuracies[method], compression=compression[method])
        for method in METHODS
    }
    rows = {name: result.to_mapping(results["baseline"]) for name, result in results.items()}
    verdicts = check(results)
    print(_table(rows, teacher, setting.seeds), file=out)
    print(
        "\n".join(f"{'holds' if ok else 'FAILS'}: {name}" for name, ok in verdicts.items()),
        file=out,
    )
    report = {
        "schema": SCHEMA,
        "environment": environment,
        "setting": {name: getattr(setting, name) for name in Setting.__slots__},
        "teacher": teacher,
        "methods": rows,
        "expectations": verdicts,
    }
    write_report(report, options.json)
    return 0 if all(verdicts.values()) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distillation", description=__doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--acceptance", action="store_true", help="few-shot digits, a few minutes")
    action.add_argument(
        "--runs",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="print the results of these runs of `gsdist train` beside the published ones",
    )
    default = Setting()
    parser.add_argument("--seeds", type=int, default=default.seeds)
    parser.add_argument("--per-class", type=int, default=default.per_class)
    parser.add_argument("--epochs", type=int, default=default.epochs)
    parser.add_argument("--teacher-epochs", type=int, default=default.teacher_epochs)
    parser.add_argument("--json", metavar="PATH", help="write the result there; '-' is stdout")
    return parser


def _table(rows: Mapping[str, Mapping[str, Any]], teacher: float, seeds: int) -> str:
    lines = [
        f"accuracy in percent after the last epoch over {seeds} seeds; teacher {teacher:.2f}",
        f"{'method':18}{'mean':>8}{'sd':>8}{'wins':>6}{'compression':>13}",
    ]
    for name, row in rows.items():
        spread = "-" if row["sd"] is None else f"{row['sd']:.2f}"
        lines.append(
            f"{name:18}{row['mean']:8.2f}{spread:>8}{row['wins']:6d}{row['compression']:12.1f}x"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
