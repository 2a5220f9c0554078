"""Run ``python -m benchmarks.collectives``; see ``--help``.

Every cell is the time of the slowest rank from a common start until its result is there. `bare-mpi4py` is the
MPI call itself on the thread that waits, `mpi4py` torch.distributed on top of it, `gloo` torch's own backend.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.collectives.contenders import BACKENDS, OPERATIONS
from benchmarks.collectives.lab import run_in_lab
from benchmarks.environment import ROOT
from benchmarks.exchange.lab import verified_rates
from benchmarks.mpirun import OPEN_MPI_SETTINGS, find_mpirun
from benchmarks.netlab import LabUnavailable, NetworkLab, RateError
from benchmarks.output import begin, write_report
from gsdist.collectives.mpi import BACKEND

SCHEMA = 1
_TIME_LIMIT = 3600.0
_SIZES = {
    True: [4, 1024, 65_536, 1 << 20, 2 << 20, 4 << 20, 16 << 20],
    False: [
        *(4, 64, 1024, 16_384, 65_536, 1 << 18),
        *(1 << 20, 2 << 20, 4 << 20, 16 << 20, 64 << 20, 256 << 20),
    ],
}


def main(argv: list[str] | None = None) -> int:
    """Measure all numbers of ranks, print tables, write the JSON.

    Returns 3 without mpirun or lab, 1 when links did not have their rate.
    """
    arguments = _arguments(argv)
    described, out = begin(arguments.json, threads=1)
    launcher = find_mpirun()
    if launcher is None:
        print("error: no mpirun on PATH; pip install 'gsdist[mpi]'", file=sys.stderr)
        return 3
    plan = {
        "backends": arguments.backends,
        "operations": arguments.operations,
        "sizes": arguments.sizes or _SIZES[arguments.quick],
        "seconds": arguments.seconds or (0.5 if arguments.quick else 3.0),
        "least_repetitions": 5,
        "most_repetitions": 500,
    }
    cells: list[dict[str, Any]] = []
    missed = False
    for ranks, rate in product(arguments.ranks, arguments.rates or [None]):
        try:
            found = _run(launcher, plan, ranks, rate)
        except LabUnavailable as error:
            print(f"error: {error}", file=sys.stderr)
            return 3
        except RateError as error:
            print(f"\n{ranks} ranks, links of {rate}: not measured, {error}", file=out)
            missed = True
            continue
        cells += [cell | {"rate": rate} for cell in found["cells"]]
        described["mpi"] = found["mpi"]
        links = f"links of {rate}" if rate else "one machine"
        print(f"\n{ranks} ranks, {links}, {found['mpi']}, median microseconds", file=out)
        print("\n".join(_table(found["cells"], arguments.backends)), file=out, flush=True)
    write_report(
        {"benchmark": "collectives", "schema": SCHEMA, "environment": described, "cells": cells},
        arguments.json,
    )
    return int(missed)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.collectives", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer sizes, half a second per cell")
    parser.add_argument("--json", metavar="PATH", help="write the result there; '-' is stdout")
    parser.add_argument("--ranks", nargs="+", type=int, default=[2], metavar="P")
    parser.add_argument(
        "--rates", nargs="+", help="such as 1gbit: run over shaped links; root, Open MPI"
    )
    parser.add_argument("--seconds", type=float, help="per cell, in place of 0.5 and 3")
    parser.add_argument("--sizes", nargs="+", type=int, metavar="BYTES")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--operations", nargs="+", choices=OPERATIONS, default=list(OPERATIONS))
    return parser.parse_args(argv)


def _run(launcher: str, plan: Mapping[str, Any], ranks: int, rate: str | None) -> dict[str, Any]:
    """Run the worker on all ranks, on this machine or in a lab; return what rank 0 found.

    Raises:
        LabUnavailable: this machine cannot have a lab.
        RateError: its links do not have the rate.
    """
    with TemporaryDirectory(prefix="gsdist-collectives-") as name:
        folder = Path(name)
        path, output = folder / "plan.json", folder / "output.json"
        path.write_text(json.dumps(plan))
        worker = ["-m", "benchmarks.collectives.worker", str(path), str(output)]
        if rate is None:
            _run_here(launcher, ranks, worker)
        else:
            with NetworkLab(ranks, rate, offloads=True) as lab:
                verified_rates(lab)
                run_in_lab(lab, launcher, worker, folder, timeout=_TIME_LIMIT).check()
        result: dict[str, Any] = json.loads(output.read_text())
        return result


def _run_here(launcher: str, ranks: int, worker: Sequence[str]) -> None:
    subprocess.run(
        [launcher, "-n", str(ranks), sys.executable, *worker],
        env=os.environ | OPEN_MPI_SETTINGS | {"PYTHONPATH": str(ROOT)},
        stdout=sys.stderr,
        timeout=_TIME_LIMIT,
        check=True,
    )


def _table(cells: Sequence[Mapping[str, Any]], backends: Sequence[str]) -> list[str]:
    lines = [f"{'operation':<16}{'bytes':>11}" + "".join(f"{name:>14}" for name in backends)]
    for operation, size in dict.fromkeys((cell["operation"], cell["bytes"]) for cell in cells):
        row = {
            cell["backend"]: cell
            for cell in cells
            if (cell["operation"], cell["bytes"]) == (operation, size)
        }
        medians = "".join(f"{row[name]['microseconds_median']:>14.1f}" for name in backends)
        lines.append(f"{operation:<16}{size:>11}{medians}{_over_bare(row.get(BACKEND))}")
    return lines


def _over_bare(cell: Mapping[str, Any] | None) -> str:
    if cell is None or "over_bare" not in cell:
        return ""
    ratio, low, high = (cell[f"over_bare{end}"] for end in ("", "_low", "_high"))
    return f"  {BACKEND} / bare {ratio:.3f} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    sys.exit(main())
