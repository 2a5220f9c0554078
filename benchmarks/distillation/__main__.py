"""Run ``python -m benchmarks.distillation``; see ``--help``."""

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from benchmarks.distillation.experiments import CIFAR10, DIGITS, Experiment
from benchmarks.distillation.published import compare, table
from benchmarks.distillation.result import Result
from benchmarks.distillation.step_cost import BOUND, measure
from benchmarks.distillation.students import run_all
from benchmarks.output import begin, write_report
from gsdist.training import RunSummary, detect_launch, process_group
from gsdist.training.summary import read_summaries

SCHEMA = 2
_ROUNDS = 40
_SIZES = {
    "seeds": "repetitions with other images, weights and order",
    "per_class": "images of each class that students learn from",
    "epochs": "of the students",
    "teacher_epochs": "of the teacher",
}
"""What of an experiment can be changed; defaults are those the expectations are about."""


def main(argv: list[str] | None = None) -> int:
    """Train or compare runs, print a table, write JSON, and fail when an expectation does not hold."""
    options = _parser().parse_args(argv)
    if options.runs:
        print(table(compare(run for path in options.runs for run in read_summaries(path))))
        return 0
    if options.step_cost:
        return _compare_steps(options.json)
    experiment = _sized(CIFAR10 if options.cifar10 else DIGITS, options)
    torch.set_num_threads(1)
    environment, out = begin(options.json, threads=1)
    with _folder(options.folder) as folder:
        summaries = _train_all(experiment, folder)
    results = {
        method: Result(
            accuracies=[100 * run.primary for run in runs],
            compression=[run.compression for run in runs],
            seconds=[run.steps / run.steps_per_s for run in runs],
        )
        for method, runs in summaries.items()
    }
    teacher = results.pop("teacher")
    rows = {name: result.to_mapping(results["baseline"]) for name, result in results.items()}
    verdicts = experiment.check(results)
    print(_table(rows, teacher.mean, experiment.seeds), file=out)
    print(
        "\n".join(f"{'holds' if ok else 'FAILS'}: {name}" for name, ok in verdicts.items()),
        file=out,
    )
    report = {
        "benchmark": "distillation",
        "schema": SCHEMA,
        "environment": environment,
        "setting": experiment.setting(),
        "teacher": teacher.mean,
        "teacher_seconds": teacher.seconds[0],
        "methods": rows,
        "expectations": verdicts,
    }
    write_report(report, options.json)
    return 0 if all(verdicts.values()) else 1


def _compare_steps(target: str | None) -> int:
    torch.set_num_threads(1)
    environment, out = begin(target, threads=1)
    with _folder(None) as folder, process_group(detect_launch(), timedelta(minutes=5)):
        found = measure(_ROUNDS, folder)
    for name, seconds in found["median_seconds"].items():
        print(f"{name:8} {1000 * seconds:8.1f} ms", file=out)
    print(f"ratio {found['ratio']:.3f}, at most {BOUND} wanted", file=out)
    write_report(
        {"benchmark": "distillation", "schema": SCHEMA, "environment": environment, **found}, target
    )
    return 0 if found["ratio"] <= BOUND else 1


def _train_all(experiment: Experiment, folder: Path) -> dict[str, list[RunSummary]]:
    summaries: dict[str, list[RunSummary]] = defaultdict(list)
    with process_group(detect_launch(), timedelta(minutes=5)):
        for seed, method, summary in run_all(experiment, folder):
            print(f"seed {seed}: {method:18} {100 * summary.primary:.2f} %", file=sys.stderr)
            summaries[method].append(summary)
    return summaries


@contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    """Give the folder asked for, or one that goes away."""
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _sized(experiment: Experiment, options: argparse.Namespace) -> Experiment:
    given = {name: getattr(options, name) for name in _SIZES if getattr(options, name) is not None}
    return replace(experiment, **given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distillation", description=__doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--acceptance", action="store_true", help="few-shot digits, a few minutes")
    action.add_argument(
        "--cifar10", action="store_true", help="10,000 images of CIFAR-10, an hour of one core"
    )
    action.add_argument(
        "--step-cost",
        action="store_true",
        help="time an HSAKD student's step against the same passes by hand, a minute on an idle machine",
    )
    action.add_argument(
        "--runs",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="print the results of these runs of `gsdist train` beside the published ones",
    )
    for name, meaning in _SIZES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=meaning)
    parser.add_argument(
        "--folder",
        type=Path,
        metavar="DIR",
        help="keep the runs there, and go on with those that it holds",
    )
    parser.add_argument("--json", metavar="PATH", help="write the result there; '-' is stdout")
    return parser


def _table(rows: Mapping[str, Mapping[str, Any]], teacher: float, seeds: int) -> str:
    lines = [
        f"accuracy in percent after the last epoch over {seeds} seeds; teacher {teacher:.2f}",
        f"{'method':18}{'mean':>8}{'sd':>8}{'wins':>6}{'compression':>13}{'minutes':>9}",
    ]
    for name, row in rows.items():
        spread = "-" if row["sd"] is None else f"{row['sd']:.2f}"
        lines.append(
            f"{name:18}{row['mean']:8.2f}{spread:>8}{row['wins']:6d}{row['compression']:12.1f}x"
            f"{row['seconds'] / 60:9.2f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
