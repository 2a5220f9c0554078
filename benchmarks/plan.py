"""Hold the planner's predictions against the measured cells of the exchange suite.

Run ``python -m benchmarks.plan benchmarks/results/exchange-*.json``. Of a cell the planner is told what it
would know before a run: the model's shapes, the method's settings, the number of workers, what its probe
found in that lab, and what a few exchanges of random gradients took there before the cells were timed.
Everything else is predicted, bytes and messages included.

Choices are judged in every setting of model, workers and rate by time to dense quality: a measured time times
the step factor. The step factors are the same on both sides, so this says whether times are predicted well
enough to choose by, not whether the factors are right. Methods take turns, so repetitions are compared in
pairs: a choice is slower beyond noise if the whole bootstrap interval of the ratio of medians is above 1.

How far the first and the second half of a cell's repetitions differ says how well a measurement of seconds
repeats itself, which no prediction can be expected to surpass.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.bootstrap import interval_of_ratio
from benchmarks.exchange.methods import METHODS, ORIGINAL
from benchmarks.gradients import SOURCES, network_of, workload_of
from benchmarks.output import begin, write_report
from gsdist.collectives.cost_model import Link
from gsdist.planner import Candidate, Measured, Prediction, Situation, choose, predict
from gsdist.reducers import FlatLayout, ReducerConfig, lay_out

__all__ = ["difference_of_halves", "judge_choices", "predict_cells", "within"]

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
    labs = {(lab["ranks"], lab["rate"]): lab for lab in result["labs"] if "link" in lab}
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
        predicted = _predict(candidate, cell, labs[ranks, cell["rate"]])
        measured, factor = cell["seconds_median"], predicted.step_factor
        yield (
            {
                "file": name,
                **{key: cell[key] for key in ("model", "method", "ranks", "rate", "d")},
                "measured_seconds": measured,
                "seconds": cell["seconds"],
                "difference_of_halves": difference_of_halves(cell["seconds"]),
                "p10_seconds": cell["seconds_p10"],
                "p90_seconds": cell["seconds_p90"],
                "predicted_seconds": predicted.step_seconds,
                "error": predicted.step_seconds / measured - 1,
                "local_share": predicted.measured.local_seconds / measured,
                "messages": predicted.cost.messages,
                "step_factor": factor.factor if factor else None,
            },
            predicted,
        )


def _predict(candidate: Candidate, cell: Mapping[str, Any], lab: Mapping[str, Any]) -> Prediction:
    situation = Situation(
        ranks=cell["ranks"], link=Link(**lab["link"]), compute_seconds=0.0, skew=1.0
    )
    layout = _layout(cell["model"], candidate.config)
    return predict(candidate, layout, Measured(**cell["planned"]), situation)


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
    judged = {"chosen": chosen, "best": best, "over_best": quality[chosen] / quality[best]}
    return judged | _against_dense(offered[chosen], offered.get(_BASELINE))


def _against_dense(
    chosen: Mapping[str, Any], dense: Mapping[str, Any] | None
) -> dict[str, float | bool | None]:
    """Compare a choice's time to quality with dense bfloat16's."""
    if dense is None or chosen is dense:
        ratio = dense and 1.0
        return {
            "over_dense_bf16": ratio,
            "over_dense_bf16_low": ratio,
            "over_dense_bf16_high": ratio,
            "slower_than_dense_bf16": False,
        }
    factor = chosen["step_factor"]
    low, high = interval_of_ratio(chosen["seconds"], dense["seconds"])
    return {
        "over_dense_bf16": factor * chosen["measured_seconds"] / dense["measured_seconds"],
        "over_dense_bf16_low": factor * low,
        "over_dense_bf16_high": factor * high,
        "slower_than_dense_bf16": factor * low > 1,
    }


def difference_of_halves(seconds: Sequence[float]) -> float:
    """Return by how much the larger median of the first and the second half exceeds the smaller one."""
    middle = len(seconds) // 2
    medians = statistics.median(seconds[:middle]), statistics.median(seconds[middle:])
    return max(medians) / min(medians) - 1


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
        "benchmark": "plan",
        "schema": SCHEMA,
        "environment": described,
        "predicted_cells": [
            {name: value for name, value in row.items() if name != "seconds"} for row in rows
        ],
        "choices": choices,
    }
    write_report(report, options.json)
    return 0


def _cell_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    large = [row for row in rows if row["d"] >= _LARGE]
    small = [row for row in rows if row["d"] < _LARGE]
    inside = sum(r["p10_seconds"] <= r["predicted_seconds"] <= r["p90_seconds"] for r in rows)
    alike = sum(row["difference_of_halves"] <= _TOLERANCE for row in rows)
    lines = [
        f"{len(rows)} cells; predicted within 20 %: {within(rows):.0%}"
        + "".join(
            f", {label} 10 million parameters {within(some):.0%} of {len(some)}"
            for label, some in (("from", large), ("below", small))
            if some
        ),
        f"between the 10th and 90th percentile of the repetitions: {inside / len(rows):.0%}",
        f"halves of the repetitions within 20 % of each other: {alike / len(rows):.0%}",
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
        f"{'model':<13}{'P':>3}{'rate':>9}  {'chosen':<17}{'best':<17}{'over best':>10}{'over bf16':>10}"
        f"{'low':>7}{'high':>7}",
    ]
    return lines + [
        f"{c['model']:<13}{c['ranks']:>3}{c['rate']:>9}  {c['chosen']:<17}{c['best']:<17}"
        f"{c['over_best']:>10.2f}"
        + (
            f"{c['over_dense_bf16']:>10.2f}{c['over_dense_bf16_low']:>7.2f}{c['over_dense_bf16_high']:>7.2f}"
            if c["over_dense_bf16"]
            else ""
        )
        for c in choices
    ]


if __name__ == "__main__":
    sys.exit(main())
