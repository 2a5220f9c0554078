"""Run ``python -m benchmarks.simulated_link``; see ``--help``.

One worker trains under DistributedDataParallel with gsdist attached, on the CPU or one GPU. No message
leaves it: at every collective its exchange waits as long as the planner's cost model says that a link of
this bandwidth and latency among so many workers needs. The methods are those with which each of many workers
computes what one does, which only all-reduce. All are timed in turn, and each beside the same step over no
wire and a step without exchange. `wire` is what was waited, as measured; a dense exchange pays latency once
per bucket of DDP, which `planned` counts once. `hidden`, the share of the wire's time that does not show,
says little where that is shorter than steps vary. What all this leaves out: other workers that come late, and
links that are not as the model says.
"""

import argparse
import sys
from datetime import timedelta
from typing import Any

import torch

from benchmarks.gradients import SOURCES
from benchmarks.output import begin, write_report
from benchmarks.simulated_link.measure import Setting, measure
from gsdist.cli.plan import parse_bandwidth, parse_latency
from gsdist.collectives.cost_model import Link
from gsdist.training import detect_launch, process_group
from gsdist.training.device import training_device

SCHEMA = 1
METHODS = ("dense-fp32", "dense-bf16", "gs-sgd", "gs-sgd-paper", "random-k", "power-sgd")
_TIMEOUT = timedelta(seconds=300)
_HEADER = (
    f"{'model':<12}{'method':<16}{'link':>10}{'ms':>9}{'no wire':>9}{'alone':>9}{'exposed':>9}"
    f"{'x alone':>9}{'95 % interval':>15}{'wire':>9}{'planned':>9}{'hidden':>8}{'kB':>11}"
)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.simulated_link", description=__doc__
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--models", nargs="+", choices=list(SOURCES), default=["resnet20"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, metavar="METHOD")
    parser.add_argument("--ranks", type=int, default=16, help="workers that are simulated")
    parser.add_argument("--bandwidths", nargs="+", default=["1Gbit", "10Gbit"])
    parser.add_argument("--latency", default="50us", help="of one message")
    parser.add_argument("--density", type=float, default=0.004, help="k / d of sparse methods")
    parser.add_argument("--batch", type=int, default=8, help="examples per step")
    parser.add_argument("--rounds", type=int, default=10, help="medians are taken over these")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", metavar="PATH", help="write the result there; '-' is stdout")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Check and measure all methods, print the table, write the JSON; return 1 if a cell is wrong."""
    arguments = _arguments(argv)
    torch.set_num_threads(arguments.threads)
    device = training_device(arguments.device, local_rank=0, deterministic=True)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    described, out = begin(arguments.json, threads=arguments.threads, device=name)
    print(f"\n{_HEADER}", file=out)
    cells: list[dict[str, Any]] = []
    with process_group(detect_launch(), _TIMEOUT, on_gpu=device.type == "cuda"):
        for model in arguments.models:
            for bandwidth in arguments.bandwidths:
                setting = Setting(
                    model=model,
                    methods=arguments.methods,
                    density=arguments.density,
                    batch=arguments.batch,
                    device=device,
                    link=Link(
                        latency=parse_latency(arguments.latency),
                        bandwidth=parse_bandwidth(bandwidth),
                    ),
                    ranks=arguments.ranks,
                    rounds=arguments.rounds,
                )
                found = measure(setting)
                cells += found
                print("\n".join(_format(cell, bandwidth) for cell in found), file=out, flush=True)
    report = {
        "benchmark": "simulated_link",
        "schema": SCHEMA,
        "environment": described,
        "simulated_cells": cells,
    }
    write_report(report, arguments.json)
    return 0 if all(cell["correct"] for cell in cells) else 1


def _format(cell: dict[str, Any], bandwidth: str) -> str:
    start = f"{cell['model']:<12}{cell['method']:<16}{bandwidth:>10}"
    if not cell["correct"]:
        return f"{start}  NOT CORRECT: {cell['fault']}"
    first = ("seconds_median", "seconds_without_wire", "seconds_alone", "exposed_seconds")
    low, high = cell["over_alone_interval"]
    hidden = "-" if cell["hidden_share"] is None else f"{cell['hidden_share']:.0%}"
    return (
        start
        + "".join(f"{1e3 * cell[key]:>9.2f}" for key in first)
        + f"{cell['over_alone']:>9.2f}{f'{low:.2f} to {high:.2f}':>15}"
        + f"{1e3 * cell['wire_seconds']:>9.2f}{1e3 * cell['planned_wire_seconds']:>9.2f}"
        + f"{hidden:>8}{1e-3 * cell['payload_bytes']:>11.1f}"
    )


if __name__ == "__main__":
    sys.exit(main())
