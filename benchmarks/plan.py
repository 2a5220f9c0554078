"""Hold the planner's predictions against the measured cells of the exchange suite.

Run ``python -m benchmarks.plan benchmarks/results/exchange-*.json``. Of a cell the planner is told the
model's shapes, the method's settings, the number of workers, the lab's rate and calibration, and how long
rank 0 computed in that cell (a run would measure it beforehand, `gsdist.planner.measure`). Everything else
is predicted, bytes and messages included.

Choices are judged in every setting of model, workers and rate by time to dense quality: a measured time times
the step factor. The step factors are the same on both sides, so this says whether times are predicted well
enough to choose by, not whether the factors are right. The recorded cells hold no single repetitions, so
noise is judged by the 10th and 90th percentiles.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.exchange.methods import METHODS, ORIGINAL
from benchmarks.exchange.prediction import FRAMING
from benchmarks.gradients import SOURCES, network_of, workload_of
from benchmarks.netlab import parse_rate
from benchmarks.output import begin, write_report
from gsdist.collectives.cost_model import Link
from gsdist.planner import Candidate, Prediction, Situation, choose, predict
from gsdist.reducers import FlatLayout, ReducerConfig, lay_out

__all__ = ["judge_choices", "predict_cells", "within"]

SCHEMA = 1
_BASELINE = "dense-bf16"
_MEASURED_AS = {
    "dense-fp32": "dense",
    "dense-bf16": "dense",
    "dense-fp16": "dense",
    "gs-sgd": "gs-sgd",
    "gs-sgd-paper": "gs-sgd-paper",
    "power-sgd": "power-sgd",
    "top-k-proposals": "proposals",
    "top-k": "top-k",
    "g-top-k": "g-top-k",
}
"""The convergence suite's names of the exchange suite's methods; the others' quality was not measured."""
_NOT_OFFERED = ("dense-fp16", "random-k")
_LARGE = 10_000_000
_TOLERANCE = 0.2
_NEAR_BEST = 1.1
_SHOWN = 12


def predict_cells(
    name: str, result: Mapping[str, Any]
) -> Iterator[tuple[dict[str, Any], Prediction]]:
    """Yield a row and the prediction of every correct cell of a result whose method the planner knows."""
    links = {
        (lab["ranks"], lab["rate"]): _link(lab) for lab in result["labs"] if "calibration" in lab
    }
    for cell in result["cells"]:
        if not cell["correct"] or cell["method"] == ORIGINAL:
            continue
        method, ranks = cell["method"], cell["ranks"]
        config: Any = METHODS[method](cell["density"])
        candidate = Candidate(
            name=method,
            config=config,
            measured_as=_MEASURED_AS.get(method, "unmeasured"),
            offered=method not in _NOT_OFFERED,
        )
        situation = Situation(ranks=ranks, link=links[ranks, cell["rate"]], compute_seconds=0.0)
        predicted = predict(
            candidate, _layout(cell["model"], config), cell["local_seconds"], situation
        )
        measured, factor = cell["seconds_median"], predicted.step_factor
        yield (
            {
                "file": name,
                **{key: cell[key] for key in ("model", "method", "ranks", "rate", "d")},
                "measured_seconds": measured,
                "p10_seconds": cell["seconds_p10"],
                "p90_seconds": cell["seconds_p90"],
                "predicted_seconds": predicted.step_seconds,
                "error": predicted.step_seconds / measured - 1,
                "local_share": cell["local_seconds"] / measured,
                "messages": predicted.cost.messages,
                "step_factor": factor.factor if factor else None,
            },
            predicted,
        )


def _link(lab: Mapping[str, Any]) -> Link:
    rate = parse_rate(lab["rate"])
    calibration = lab["calibration"]
    bandwidth = calibration["bytes_per_second"] if rate is None else rate / 8
    return Link(latency=calibration["seconds_per_message"], bandwidth=bandwidth / FRAMING)


@cache
def _layout(model: str, config: ReducerConfig) -> FlatLayout:
    return lay_out(config, _parameters(model))


@cache
def _parameters(model: str) -> dict[str, Any]:
    network = network_of(SOURCES[model], workload_of(SOURCES[model]))
    return {name: parameter.to("meta") for name, parameter in network.named_parameters()}


def judge_choices(cells: Iterable[tuple[Mapping[str, Any], Prediction]]) -> list[dict[str, Any]]:
    """Return, per setting, what the planner chooses and how far it is from the best, in quality time.

    Settings in which dense exchange was not measured offer no choice and are left out.
    """
    settings: dict[tuple[Any, ...], list[tuple[Mapping[str, Any], Prediction]]] = {}
    for row, predicted in cells:
        key = tuple(row[name] for name in ("file", "model", "ranks", "rate"))
        settings.setdefault(key, []).append((row, predicted))
    return [
        dict(zip(("file", "model", "ranks", "rate"), key, strict=True)) | _judge(inside)
        for key, inside in settings.items()
        if any(predicted.candidate.is_dense for _, predicted in inside)
    ]


def _judge(cells: Sequence[tuple[Mapping[str, Any], Prediction]]) -> dict[str, Any]:
    chosen = choose(predicted for _, predicted in cells).name
    offered = {
        row["method"]: row
        for row, predicted in cells
        if predicted.candidate.offered and row["step_factor"] is not None
    }
    quality = {name: row["measured_seconds"] * row["step_factor"] for name, row in offered.items()}
    best = min(quality, key=quality.__getitem__)
    baseline = offered.get(_BASELINE)
    return {
        "chosen": chosen,
        "best": best,
        "over_best": quality[chosen] / quality[best],
        "over_dense_bf16": baseline and quality[chosen] / baseline["measured_seconds"],
        "slower_than_dense_bf16": baseline is not None
        and chosen != _BASELINE
        and offered[chosen]["p10_seconds"] * offered[chosen]["step_factor"]
        > baseline["p90_seconds"],
    }


def within(rows: Sequence[Mapping[str, Any]], tolerance: float = _TOLERANCE) -> float:
    """Return the share of cells whose prediction is at most a tolerance off."""
    return sum(abs(row["error"]) <= tolerance for row in rows) / len(rows)


def main(argv: list[str] | None = None) -> int:
    """Print the tables and write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plan", description=__doc__)
    parser.add_argument("results", nargs="+", type=Path, help="JSON files of benchmarks.exchange")
    parser.add_argument("--json", metavar="PATH", help="write the result there; '-' is stdout")
    options = parser.parse_args(argv)
    described, out = begin(options.json, threads=1)
    cells = [
        cell
        for path in options.results
        for cell in predict_cells(path.name, json.loads(path.read_text()))
    ]
    rows = [row for row, _ in cells]
    choices = judge_choices(cells)
    print("\n".join(["", *_cell_lines(rows), "", *_choice_lines(choices)]), file=out)
    report = {
        "schema": SCHEMA,
        "environment": described,
        "predicted_cells": rows,
        "choices": choices,
    }
    write_report(report, options.json)
    return 0


def _cell_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    large = [row for row in rows if row["d"] >= _LARGE]
    small = [row for row in rows if row["d"] < _LARGE]
    inside = sum(r["p10_seconds"] <= r["predicted_seconds"] <= r["p90_seconds"] for r in rows)
    lines = [
        f"{len(rows)} cells; predicted within 20 %: {within(rows):.0%}"
        + "".join(
            f", {label} 10 million parameters {within(some):.0%} of {len(some)}"
            for label, some in (("from", large), ("below", small))
            if some
        ),
        f"between the 10th and 90th percentile of the repetitions: {inside / len(rows):.0%}",
        f"worst {_SHOWN}:",
        f"{'model':<13}{'method':<20}{'P':>3}{'rate':>9}{'ms':>9}{'p10':>8}{'p90':>8}{'predicted':>10}"
        f"{'error':>7}{'messages':>9}",
    ]
    worst = sorted(rows, key=lambda row: -abs(row["error"]))[:_SHOWN]
    return lines + [
        f"{row['model']:<13}{row['method']:<20}{row['ranks']:>3}{row['rate']:>9}"
        f"{1e3 * row['measured_seconds']:>9.1f}{1e3 * row['p10_seconds']:>8.1f}"
        f"{1e3 * row['p90_seconds']:>8.1f}{1e3 * row['predicted_seconds']:>10.1f}"
        f"{row['error']:>7.0%}{row['messages']:>9.1f}"
        for row in worst
    ]


def _choice_lines(choices: Sequence[Mapping[str, Any]]) -> list[str]:
    near = sum(choice["over_best"] <= _NEAR_BEST for choice in choices)
    slower = sum(choice["slower_than_dense_bf16"] for choice in choices)
    lines = [
        f"choice within 10 % of the best time to quality: {near} of {len(choices)} settings; slower than "
        f"dense bfloat16 beyond noise: {slower}",
        f"{'model':<13}{'P':>3}{'rate':>9}  {'chosen':<17}{'best':<17}{'over best':>10}{'over bf16':>10}",
    ]
    return lines + [
        f"{c['model']:<13}{c['ranks']:>3}{c['rate']:>9}  {c['chosen']:<17}{c['best']:<17}"
        f"{c['over_best']:>10.2f}"
        + (f"{c['over_dense_bf16']:>10.2f}" if c["over_dense_bf16"] else "")
        for c in choices
    ]


if __name__ == "__main__":
    sys.exit(main())
