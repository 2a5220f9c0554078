"""Compare local SGD with outer steps to dense training of a GPT, at equal tokens.

Run ``python -m benchmarks.outer_step``. Two workers train gpt-1m on Shakespeare with AdamW; dense exchanges
in every step, the others once in 16. Bytes are those handed to collectives in the whole run, by rank 0. One
seed, short runs: a lead, not a law.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

from benchmarks.output import begin, write_report

SCHEMA = 1
_WORKERS = 2
_SETTINGS = (
    *("--model", "gpt-1m", "--data", "shakespeare", "--context", "64"),
    *("--evaluation-windows", "2000", "--optimizer", "adamw", "--batch-size", "16"),
    *("--lr-warmup-steps", "32", "--clip-norm", "1", "--no-progress"),
)
_EVERY_16 = ("--outer-interval", "16")
_DENSE = ("--reducer", "dense")
# What AdamW inside has moved is spread over more directions than a gradient.
_GS_SGD = ("--reducer", "gs-sgd", "--reducer.compression", "9.4", "--reducer.max-directions", "512")
_FRAGMENTS = ("--outer-fragments", "4")
_NESTEROV = ("--outer-momentum", "0.6")
_DILOCO = ("--outer-learning-rate", "0.7", "--outer-momentum", "0.9")
RUNS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "dense": _DENSE,
        "Nesterov, gs-sgd inside": (*_GS_SGD, *_EVERY_16, *_NESTEROV),
        "Nesterov, dense inside": (*_DENSE, *_EVERY_16, *_NESTEROV),
        "Nesterov, gs-sgd, 4 fragments": (*_GS_SGD, *_EVERY_16, *_NESTEROV, *_FRAGMENTS),
        "mean, gs-sgd inside": (*_GS_SGD, *_EVERY_16),
        "DiLoCo's, gs-sgd inside": (*_GS_SGD, *_EVERY_16, *_DILOCO),
    }
)
"""Options of each run: "mean" takes over the workers' mean, "Nesterov" has a momentum of 0.6, "DiLoCo's" that
paper's outer optimizer."""
_DEFAULT = tuple(RUNS)[:2]


def main(argv: list[str] | None = None) -> int:
    """Train, print loss and bytes beside dense, write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.outer_step", description=__doc__)
    parser.add_argument("--all", action="store_true", help="all six runs, not the first two only")
    parser.add_argument("--steps", type=int, default=640)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="PATH", help="write the result there; '-' is stdout")
    options = parser.parse_args(argv)
    described, out = begin(options.json, threads=1)
    print(f"\n{'run':<34}{'loss':>8}{'over dense':>12}{'MB':>10}{'x fewer':>9}", file=out)
    rows: list[dict[str, Any]] = []
    for name in RUNS if options.all else _DEFAULT:
        summary = _train(RUNS[name], steps=options.steps, seed=options.seed)
        loss, payload = summary["metrics"]["loss"], summary["payload_bytes_run"]
        dense = rows[0] if rows else {"loss": loss, "payload_bytes": payload}
        rows.append(
            {
                "run": name,
                "options": RUNS[name],
                "loss": loss,
                "loss_over_dense": loss / dense["loss"] - 1,
                "payload_bytes": payload,
                "compression": dense["payload_bytes"] / payload,
                "evaluations": summary["curves"]["evaluation"],
            }
        )
        row = rows[-1]
        print(
            f"{name:<34}{loss:>8.4f}{row['loss_over_dense']:>12.2%}{payload / 1e6:>10.2f}"
            f"{row['compression']:>9.1f}",
            file=out,
            flush=True,
        )
    report = {
        "benchmark": "outer_step",
        "schema": SCHEMA,
        "environment": described,
        "steps": options.steps,
        "seed": options.seed,
        "workers": _WORKERS,
        "outer_runs": rows,
    }
    write_report(report, options.json)
    return 0


def _train(options: tuple[str, ...], *, steps: int, seed: int) -> dict[str, Any]:
    with TemporaryDirectory(prefix="gsdist-outer-") as folder:
        result = Path(folder) / "summary.json"
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={_WORKERS}"]
        course = ["--steps", str(steps), "--seed", str(seed), "--evaluate-every", str(steps // 4)]
        places = ["--run-dir", str(Path(folder) / "run"), "--json", str(result)]
        command = [sys.executable, *launcher, "-m", "gsdist", "train", "language", *_SETTINGS]
        subprocess.run(
            [*command, *course, *options, *places], check=True, stdout=subprocess.DEVNULL
        )
        summary: dict[str, Any] = json.loads(result.read_text())
        return summary


if __name__ == "__main__":
    sys.exit(main())
