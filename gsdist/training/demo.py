"""Train the same small network twice on two processes, dense and with gs-SGD, and compare.

Fetches CIFAR-10 first; when it cannot be had, trains on scikit-learn's digits instead.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gsdist.data import fetch
from gsdist.errors import GsdistError
from gsdist.training.report import comparison, phase_rows, table_rows, write_report
from gsdist.training.summary import RunSummary, read_summaries

__all__ = ["main"]

_WORKERS = 2
_TIME_LIMIT = 600.0
_REDUCERS = {
    "dense": ("--reducer", "dense"),
    "gs-sgd": (
        *("--reducer", "gs-sgd", "--reducer.compression", "30", "--reducer.min-numel", "256"),
    ),
}
"""Every option of the exchange that differs from the command line's default."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Setting:
    """Hold what is trained; the same for all reducers."""

    data: str
    options: tuple[str, ...]


_CIFAR10 = _Setting(
    data="cifar10",
    options=(
        *("--model", "resnet8", "--batch-size", "32", "--steps", "800", "--learning-rate", "0.1"),
        *("--lr-warmup-steps", "40", "--evaluate-every", "400"),
        "--no-augment",  # less than two passes over the data leave nothing to over-fit
    ),
)
_DIGITS = _Setting(
    data="digits",
    options=(
        *("--model", "resnet8", "--batch-size", "32", "--steps", "600", "--learning-rate", "0.05"),
        *("--lr-warmup-steps", "40", "--evaluate-every", "200"),
    ),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; return 0 when both runs ended well."""
    parser = argparse.ArgumentParser(prog="python -m gsdist.training.demo", description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=Path("runs/demo"), help="folder for all results"
    )
    parser.add_argument(
        "--data", choices=("cifar10", "digits"), default="cifar10", help="what to train on"
    )
    options = parser.parse_args(arguments)
    setting = _CIFAR10 if options.data == "cifar10" and _have_cifar10() else _DIGITS
    runs = [
        _train(name, [*reducer, "--data", setting.data, *setting.options], options.output / name)
        for name, reducer in _REDUCERS.items()
    ]
    summary, report = options.output / "summary.json", options.output / "report.html"
    summary.write_text(json.dumps([run.to_mapping() for run in runs], indent=1) + "\n")
    write_report(runs, report, title=f"gsdist demo: {setting.data} on {_WORKERS} processes")
    _print_results(runs)
    print(f"\nsummary: {summary}\nreport:  {report}")
    return 0


def _have_cifar10() -> bool:
    try:
        fetch("cifar10", install_node=True)
    except GsdistError as error:
        print(
            f"CIFAR-10 cannot be had, so the demo trains on scikit-learn's digits instead:\n{error}\n"
        )
        return False
    return True


def _train(name: str, options: Sequence[str], run_dir: Path) -> RunSummary:
    """Train on two processes by torchrun and return the summary."""
    print(f"training with {name} on {_WORKERS} processes", flush=True)
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(_WORKERS), "-m", "gsdist", "train", "classification"),
        *(*options, "--run-dir", str(run_dir)),
    ]
    threads = max(1, (os.cpu_count() or 1) // _WORKERS)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    # The table at the end says what torchrun's ranks would print.
    subprocess.run(
        command, check=True, env=environment, stdout=subprocess.DEVNULL, timeout=_TIME_LIMIT
    )
    return read_summaries(run_dir)[0]


def _print_results(runs: Sequence[RunSummary]) -> None:
    rows = [["", *(run.reducer for run in runs)], *table_rows(runs)]
    rows += [[f"ms/step: {name}", *values] for name, *values in phase_rows(runs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    print()
    for row in rows:
        first, *rest = row
        cells = [value.rjust(width) for value, width in zip(rest, widths[1:], strict=True)]
        print("  ".join([first.ljust(widths[0]), *cells]))
    print(f"\n{comparison(runs[1], runs[0])[1]}")


if __name__ == "__main__":
    sys.exit(main())
