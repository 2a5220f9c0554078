"""Draw what the planner projects over bandwidth, workers and latency, and where its choice changes.

Run ``python -m benchmarks.what_if``. Nothing is measured but how fast this machine compresses; all else is
the model of `gsdist.planner`, with step factors from small runs: a projection, not a result.
"""

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch

from benchmarks.gradients import SOURCES, network_of, workload_of
from benchmarks.output import begin, write_report
from gsdist.collectives.cost_model import Link
from gsdist.planner import (
    BASELINE,
    CANDIDATES,
    Prediction,
    Situation,
    choose,
    measure_alone,
    predict,
)
from gsdist.reducers import lay_out

__all__ = ["crossings", "sweep"]

SCHEMA = 1
_POINTS = 25
_REFINEMENTS = 20
_CENTRE = Situation(ranks=16, link=Link(latency=1e-3, bandwidth=125e6), compute_seconds=0.3)
Predict = Callable[[Situation], list[Prediction]]
At = Callable[[float], Situation]

_AXES: Mapping[str, tuple[str, float, float, At]] = {
    "bandwidth": (
        "Mb/s",
        10.0,
        100_000.0,
        lambda x: replace(_CENTRE, link=replace(_CENTRE.link, bandwidth=125e3 * x)),
    ),
    "workers": ("", 2.0, 4096.0, lambda x: replace(_CENTRE, ranks=round(x))),
    "latency": (
        "ms",
        0.01,
        100.0,
        lambda x: replace(_CENTRE, link=replace(_CENTRE.link, latency=1e-3 * x)),
    ),
}
"""Axis -> unit, first and last value, and what lies there; everything else is that of _CENTRE."""


def sweep(axis: str, predict_all: Predict) -> dict[str, Any]:
    """Return time to dense quality, over that of dense bfloat16, of every method along an axis."""
    unit, first, last, at = _AXES[axis]
    values = [first * (last / first) ** (i / (_POINTS - 1)) for i in range(_POINTS)]
    curves: dict[str, list[float]] = {}
    for value in values:
        predictions = {one.name: one for one in predict_all(at(value))}
        for name, one in predictions.items():
            if one.quality_seconds is not None:
                ratio = one.quality_seconds / predictions[BASELINE].step_seconds
                curves.setdefault(name, []).append(ratio)

    def chosen(value: float) -> str:
        return choose(predict_all(at(value))).name

    return {
        "axis": axis,
        "unit": unit,
        "values": values,
        "curves": curves,
        "crossings": crossings(values, chosen),
    }


def crossings(values: Sequence[float], chosen: Callable[[float], str]) -> list[dict[str, Any]]:
    """Return where a choice changes between ascending values, by halving on a logarithmic scale."""
    found = []
    for low, high in pairwise(values):
        before, after = chosen(low), chosen(high)
        if before == after:
            continue
        for _ in range(_REFINEMENTS):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if chosen(middle) == before else (low, middle)
        found.append({"at": math.sqrt(low * high), "below": before, "above": after})
    return found


def main(argv: list[str] | None = None) -> int:
    """Sweep, print the crossing points and write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.what_if", description=__doc__)
    parser.add_argument("--model", choices=list(SOURCES), default="resnet50")
    parser.add_argument("--json", metavar="PATH", help="write the result there; '-' is stdout")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    described, out = begin(options.json, threads=1)
    network = network_of(SOURCES[options.model], workload_of(SOURCES[options.model]))
    parameters = {name: parameter.to("meta") for name, parameter in network.named_parameters()}
    measured = measure_alone(
        CANDIDATES.values(), {n: tuple(p.shape) for n, p in parameters.items()}
    )
    layouts = {name: lay_out(CANDIDATES[name].config, parameters) for name in measured}

    def predict_all(situation: Situation) -> list[Prediction]:
        return [
            predict(CANDIDATES[name], layouts[name], one, situation)
            for name, one in measured.items()
        ]

    sweeps = [sweep(axis, predict_all) for axis in _AXES]
    centre = (
        f"{options.model}, {_CENTRE.ranks} workers, {8e-6 * _CENTRE.link.bandwidth:g} Mb/s, "
        f"{1e3 * _CENTRE.link.latency:g} ms per message, {_CENTRE.compute_seconds:g} s of computing per step"
    )
    print(f"\nprojection around {centre}", file=out)
    for one in sweeps:
        places = "; ".join(
            f"{c['below']} below {c['at']:.3g} {one['unit']}".rstrip() + f", {c['above']} above"
            for c in one["crossings"]
        )
        print(f"{one['axis']}: {places or 'one choice everywhere'}", file=out)
    report = {
        "benchmark": "what_if",
        "schema": SCHEMA,
        "environment": described,
        "centre": centre,
        "local_seconds": {name: one.local_seconds for name, one in measured.items()},
        "sweeps": sweeps,
    }
    write_report(report, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
