"""Run ``python -m benchmarks.convergence``; see ``--help``.

Every method trains the same network from the same weights on the same batches; only how the workers'
gradients are combined differs. Workers are emulated: one replica, every worker's gradient computed in turn,
the real reducers in one thread each. Bytes are those of the busiest link over the whole run, dense steps at
the start included.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any, TextIO

import torch

from benchmarks import environment
from benchmarks.convergence.methods import DENSE, METHODS, settings_of
from benchmarks.convergence.table import Cell, cells, keep, rows_of, summarize
from benchmarks.convergence.workloads import PRESETS, Training
from benchmarks.output import begin, write_report
from gsdist.reducers import SparseConfig

SCHEMA = 1
CACHE = environment.ROOT / "build" / "convergence"
DEFAULT_METHODS = ("oracle", "gs-sgd", "gs-sgd-paper", "proposals", "top-k", "g-top-k", "power-sgd")
QUICK: dict[str, Any] = {
    "workers": [4],
    "budgets": [10.0],
    "seeds": [0],
    "steps": 80,
    "evaluation_items": 2_000,
    "methods": ["oracle", "gs-sgd", "gs-sgd-paper", "proposals", "power-sgd"],
}
FULL: dict[str, Any] = {
    "workers": [4, 64],
    "budgets": [10.0, 30.0, 100.0],
    "seeds": [0, 1, 2],
    "steps": 400,
    "evaluation_items": None,
    "methods": list(DEFAULT_METHODS),
}


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.convergence", description=(__doc__ or "").split("\n", 2)[2]
    )
    parser.add_argument("--quick", action="store_true", help="one seed, 4 workers, few short runs")
    parser.add_argument("--json", metavar="PATH", help="write the result there; '-' is stdout")
    parser.add_argument("--workload", choices=PRESETS, default="resnet8")
    parser.add_argument(
        "--methods",
        nargs="+",
        type=_method,
        metavar="METHOD",
        help=f"besides {DENSE}, which is always run: {', '.join(METHODS)}; settings can be replaced, "
        "as in gs-sgd:max_directions=16,refresh_interval=5",
    )
    parser.add_argument("--workers", nargs="+", type=int, help="numbers of workers (4 64)")
    parser.add_argument("--budgets", nargs="+", type=float, help="compressions (10 30 100)")
    parser.add_argument(
        "--density",
        type=float,
        help="in place of budgets: let all methods select this share of the coordinates, without dense steps",
    )
    parser.add_argument("--seeds", nargs="+", type=int, help="seeds (0 1 2)")
    parser.add_argument("--steps", type=int, help="steps per run (400)")
    parser.add_argument("--learning-rate", type=float, help="for all methods alike")
    parser.add_argument("--train-subset", type=int, help="train on so many items only")
    parser.add_argument("--evaluation-items", type=int, help="evaluate on so many items only")
    parser.add_argument(
        "--warmup-share",
        type=float,
        default=0.25,
        help="of the budget, for dense steps at the start",
    )
    parser.add_argument("--threads", type=int, default=1, help="for gradients")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of finished rows")
    parser.add_argument(
        "--rows",
        nargs="+",
        type=Path,
        default=[],
        metavar="REPORT",
        help="earlier reports; their rows are not run again where all settings are the same",
    )
    parser.add_argument("--fresh", action="store_true", help="neither read nor write that folder")
    arguments = parser.parse_args(argv)
    for name, default in (QUICK if arguments.quick else FULL).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, default)
    return arguments


def _method(name: str) -> str:
    if name != DENSE:
        try:
            settings_of(name)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return name


def _training(arguments: argparse.Namespace) -> Training:
    preset = PRESETS[arguments.workload]
    training = Training(
        workload=arguments.workload,
        steps=arguments.steps,
        global_batch=preset.global_batch,
        learning_rate=arguments.learning_rate or preset.learning_rate,
        clip_norm=preset.clip_norm,
        train_subset=arguments.train_subset,
        evaluation_items=arguments.evaluation_items,
    )
    uneven = [p for p in arguments.workers if p < 2 or training.global_batch % p]
    if uneven:
        raise SystemExit(
            f"--workers {uneven[0]}: at least 2 workers must share the global batch of "
            f"{training.global_batch} evenly"
        )
    if min(arguments.budgets) <= 1:
        raise SystemExit(f"--budgets {min(arguments.budgets):g}: a compression is above 1")
    if arguments.density is not None:
        _check_density(arguments.density, arguments.methods)
    return training


def _check_density(density: float, methods: list[str]) -> None:
    if not 0 < density <= 1:
        raise SystemExit(f"--density {density:g}: a share of the coordinates is above 0, at most 1")
    others = [m for m in methods if m != DENSE and not isinstance(settings_of(m), SparseConfig)]
    if others:
        raise SystemExit(
            f"--density: {others[0]} selects no coordinates; leave it out of --methods"
        )


def _format(row: dict[str, Any]) -> str:
    def number(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    return (
        f"{row['method']:<18}{row['workers']:>8}{row['budget']:>8g}{row['seed']:>6}"
        f"{number(row['wire_compression'], 2):>8}{number(100 * row['accuracy'], 2):>10}"
        f"{number(row['loss'], 4):>9}{number(row['energy'], 3):>8}{row['seconds']:>9.0f}"
        f"{'  diverged' if row['diverged'] else ''}"
        f"{'' if row['meets_budget'] else '  misses the budget'}"
    )


def _left_out(cell: Cell) -> dict[str, Any]:
    return {
        "method": cell.method,
        "workers": cell.workers,
        "budget": cell.budget,
        "seed": cell.seed,
        "most_compression": cell.predicted_compression,
    }


def _run(
    arguments: argparse.Namespace, training: Training, out: TextIO
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Make or fetch all rows; return them and the cells that cannot be run."""
    rows, left_out = [], []
    known, folder = rows_of(arguments.rows), None if arguments.fresh else arguments.cache
    print(
        f"{'method':<18}{'workers':>8}{'budget':>8}{'seed':>6}{'wire x':>8}{'accuracy':>10}"
        f"{'loss':>9}{'energy':>8}{'seconds':>9}",
        file=out,
    )
    for cell in cells(
        training,
        arguments.methods,
        workers=arguments.workers,
        budgets=arguments.budgets,
        seeds=arguments.seeds,
        warmup_share=arguments.warmup_share,
        density=arguments.density,
    ):
        if cell.config is None:
            left_out.append(_left_out(cell))
            print(
                f"{cell.method:<18}{cell.workers:>8}{cell.budget:>8g}{cell.seed:>6}   cannot send less "
                f"than 1/{cell.predicted_compression:.1f} of dense",
                file=out,
            )
            continue
        rows.append(keep(folder, training, cell, known=known))
        print(_format(rows[-1]), file=out, flush=True)
    return rows, left_out


def main(argv: list[str] | None = None) -> None:
    """Run the table, print it and write the JSON."""
    arguments = _arguments(argv)
    training = _training(arguments)
    torch.set_num_threads(arguments.threads)
    described, out = begin(arguments.json, threads=arguments.threads)
    rows, left_out = _run(arguments, training, out)
    summary = summarize(rows)
    if len(arguments.seeds) > 1:
        _print_summary(summary, out)
    report = {
        "benchmark": "convergence",
        "schema": SCHEMA,
        "environment": described,
        "training": dataclasses.asdict(training),
        "warmup_share": arguments.warmup_share,
        "density": arguments.density,
        "rows": rows,
        "left_out": left_out,
        "summary": summary,
    }
    write_report(report, arguments.json, indent=None)


def _print_summary(summary: list[dict[str, Any]], out: TextIO) -> None:
    print("\nmean accuracy in %, standard error; minus dense, paired by seed", file=out)
    for entry in summary:
        error, difference_error = (
            entry[name]
            for name in ("accuracy_standard_error", "accuracy_minus_dense_standard_error")
        )
        difference = entry["accuracy_minus_dense"]
        if entry["method"] == DENSE or difference is None or error is None:
            tail = ""
        else:
            tail = f"{100 * difference:>9.2f} +- {100 * (difference_error or 0):.2f}"
        print(
            f"{entry['method']:<18}{entry['workers']:>8}{entry['budget']:>8g}"
            f"{entry['wire_compression']:>8.2f}{100 * entry['accuracy']:>9.2f} +- "
            f"{100 * (error or 0):.2f}{tail}",
            file=out,
        )


if __name__ == "__main__":
    main()
