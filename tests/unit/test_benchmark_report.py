"""The benchmark report shows what is in the JSON, lost and failed cells included, and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report.__main__ import main

ENVIRONMENT = {"commit": "abc123", "date": "2026-01-01", "cpu": "some cpu", "torch": "2.99"}
ENVIRONMENT |= {"device": "some device"}


def cell(method: str, seconds: float, **changes: Any) -> dict[str, Any]:
    values = {"wire_seconds": seconds / 2, "local_seconds": seconds / 2, "predicted_seconds": 0.5}
    counts = {"interface_bytes": 1234.0, "predicted_bytes": 1200.0, "correct": True, "fault": None}
    place = {"model": "net", "ranks": 2, "rate": "1gbit"}
    return {"method": method, "seconds_median": seconds, **place, **values, **counts, **changes}


RESULTS: dict[str, dict[str, Any]] = {
    "exchange.json": {
        "cells": [
            cell("dense-fp32", 0.010),
            cell("slower", 0.040),
            cell("broken", 0.001, correct=False, fault="ranks differ"),
        ]
    },
    "scaling.json": {
        "density": 0.01,
        "rows": [
            {"method": "ring", "model": "net", "dimension": 1000, "workers": p}
            | {"predicted_bytes": 1000.0 * p, "predicted_messages": 2 * p}
            for p in (4, 8)
        ],
    },
    "convergence.json": {
        "training": {"workload": "net", "steps": 40, "global_batch": 8},
        "density": 0.01,
        "rows": [
            {"method": "some-method", "workers": 64, "budget": 10, "seed": seed}
            | {"wire_compression": 9.87, "accuracy": 0.4321, "loss": 1.234}
            | {"curves": {"loss": [2.0] * 39 + [None], "bytes": list(range(1, 41))}}
            for seed in (0, 1)
        ],
        "summary": [
            {"method": "some-method", "workers": 64, "budget": 10, "seeds": 2, "loss": 1.234}
            | {"wire_compression": 9.87, "accuracy": 0.4321, "accuracy_standard_error": 0.0123}
            | {"accuracy_minus_dense": -0.021, "accuracy_minus_dense_standard_error": 0.004}
        ],
    },
    "kernels-gpu.json": {
        "gpu": "Some GPU 9000",
        "results": [
            {"dimension": 1024, "rows": 5, "columns": 64, "k": 8, "encode_of_roofline": 0.6543}
        ],
    },
    "simulated_link.json": {
        "simulated_cells": [
            {"model": "net", "method": name, "ranks": 16, "bytes_per_second": 125e6}
            | {"latency": 5e-5, "correct": not fault, "fault": fault, "over_alone": 1.5}
            | {"over_alone_interval": [1.4, 1.6], "seconds_median": 0.012, "seconds_alone": 0.008}
            | {"seconds_without_wire": 0.009, "exposed_seconds": 0.0041, "wire_seconds": 0.006}
            | {"hidden_share": 0.5, "payload_bytes": 4321.0}
            for name, fault in (("waiting", None), ("deviant", "it computes something else"))
        ]
    },
    "step.json": {
        "cells": [
            cell("overlapping", 0.080, exposed_seconds=-0.001)
            | {"forward_seconds": 0.03, "backward_seconds": 0.04}
            | {"cpu_seconds": 0.07, "peak_bytes": 12_300_000}
        ]
    },
    "directions.json": {
        "workload": "net",
        "steps": 9,
        "energy_kept": {"0.01": {"rotated": 0.9}, "0.1": {"rotated": 0.987}},
    },
    "distillation.json": {
        "setting": {"data": "digits", "seeds": 5},
        "teacher": 98.0556,
        "methods": {"student": {"mean": 93.777, "sd": 0.456, "wins": 4, "compression": 10.41}},
    },
    "distillation-step.json": {
        "networks": "large:small",
        "batch_size": 16,
        "rounds": 40,
        "median_seconds": {"trainer": 0.3286, "by hand": 0.3026},
        "ratio": 1.086,
        "bound": 1.15,
    },
    "collectives.json": {
        "cells": [
            {"backend": backend, "operation": "all_reduce", "ranks": 4, "bytes": 65_536}
            | {"microseconds_median": microseconds, "rate": "5gbit"}
            | beside
            for backend, microseconds, beside in (
                ("bare", 77.12, {}),
                (
                    "wrapped",
                    126.34,
                    {"over_bare": 1.638, "over_bare_low": 1.6, "over_bare_high": 1.7},
                ),
            )
        ]
    },
    "plan.json": {
        "predicted_cells": [
            {"model": "net", "method": method, "ranks": 4, "rate": "1gbit", "error": error}
            | {"measured_seconds": 0.01, "p10_seconds": 0.009, "p90_seconds": 0.02}
            | {"predicted_seconds": 0.01 * (1 + error)}
            for method, error in (("well", 0.2), ("badly", -0.5))
        ],
        "choices": [
            {"model": "net", "ranks": 4, "rate": "1gbit", "file": "some.json", "chosen": "one"}
            | {"best": "other", "over_best": 1.234, "over_dense_bf16": 0.567}
            | {"over_dense_bf16_low": 0.543, "over_dense_bf16_high": 0.589}
        ],
    },
    "what_if.json": {
        "centre": "some model",
        "sweeps": [
            {"axis": "bandwidth", "unit": "Mb/s", "values": [10.0, 100.0, 1000.0]}
            | {"curves": {"dense": [2.0, 2.0, 1.5], "other": [0.1, 0.5, 4.0]}}
            | {"crossings": [{"at": 123.4, "below": "other", "above": "dense"}]}
        ],
    },
    "hierarchical.json": {
        "rate": "1gbit",
        "uplink_rate": "100mbit",
        "hierarchical_cells": [
            {"method": "dense", "way": "flat", "seconds": 0.5, "predicted_seconds": 0.4}
            | {"local_seconds": 0.001}
        ],
    },
    "outer_step.json": {
        "workers": 2,
        "steps": 640,
        "seed": 0,
        "outer_runs": [
            {"run": "mean", "loss": 2.2, "loss_over_dense": 0.0123, "payload_bytes": 2.5e7}
            | {"compression": 101.9}
        ],
    },
    "kernels.json": {"encode_over_read": 3.21, "select_over_read": 2.34},
    "pruning.json": {
        "setting": {"images": 6000, "epochs": 12, "workers": 2},
        "rows": [
            {"method": "soft", "compact_accuracy": accuracy, "macs_ratio": 0.25}
            | {"params_ratio": 0.3, "compression": 11.2}
            for accuracy in (84.0, 86.0)
        ],
    },
    "pruning-speed.json": {
        "rows": [
            {"model": "thin", "layout": "stage", "macs_ratio": 0.5, "params_ratio": 0.4}
            | {"speedup": 1.72}
        ]
    },
    "pruning-calibration.json": {
        "rows": [
            {"model": "thin", "cost_weight": 0.25, "size_weight": 2.0, "flops": 106.7}
            | {"deviation": -0.12, "accepted": True}
        ]
    },
}
"""By file, whose name begins with the benchmark's."""


@pytest.fixture
def pages(tmp_path: Path) -> tuple[str, str]:
    for name, result in RESULTS.items():
        benchmark = name.removesuffix(".json").partition("-")[0]
        whole = {"benchmark": benchmark, **result, "environment": ENVIRONMENT}
        (tmp_path / name).write_text(json.dumps(whole))
    html, markdown = tmp_path / "out.html", tmp_path / "out.md"
    files = [str(tmp_path / name) for name in RESULTS]
    assert main([*files, "--output", str(html), "--markdown", str(markdown)]) == 0
    return html.read_text(), markdown.read_text()


def test_lost_and_failed_cells_stay(pages: tuple[str, str]) -> None:
    assert "| slower | 40.0 | 0.25 | 20.0 | 20.0 | 1.2 | 1.2 | 500.0 |" in pages[1]
    assert "| broken | ranks differ |" in pages[1]
    assert "ranks differ" in pages[0]


def test_every_kind_of_result_is_shown(pages: tuple[str, str]) -> None:
    assert "| ring | 4.0 (8) | 8.0 (16) |" in pages[1]
    assert "| some-method | 10 | 2 | 9.9 | 43.2 +- 1.2 | -2.1 +- 0.4 | 1.234 |" in pages[1]
    assert "loss by bytes, the same share of the coordinates" in pages[0]
    assert "| overlapping | 80.0 | -1.0 | 30.0 | 40.0 | 70 | 12.3 | 1.2 |" in pages[1]
    assert "| rotated | 0.900 | 0.987 |" in pages[1]
    assert "| 65,536 | 77.1 | 126.3 | 1.64 (1.60 to 1.70) |" in pages[1]
    assert "| student | 93.78 | 0.46 | 4 | 10.4 |" in pages[1]
    assert "| by hand | 302.6 |" in pages[1]
    assert "| encode over reading the vector | 3.21 |" in pages[1]
    assert "1 of 2 cells within 20 %" in pages[1]
    assert "| net, 4 workers, 1gbit | badly | 10.0 | 9.0 - 20.0 | 5.0 | -50% |" in pages[1]
    assert "| one | other | 1.23 | 0.57 | 0.54 - 0.59 | some.json |" in pages[1]
    assert "| bandwidth | other | 123 Mb/s | dense |" in pages[1]
    assert "| dense | flat | 500.0 | 400.0 | 1.0 |" in pages[1]
    assert "| mean | 2.2000 | +1.23% | 25.00 | 101.9 |" in pages[1]
    assert "| encode of roofline | 0.654 |" in pages[1]
    assert (
        "| waiting | 12.00 | 9.00 | 8.00 | 4.10 | 1.50 | 1.40 to 1.60 | 6.00 | 50% | 4.3 |"
        in pages[1]
    )
    assert "| deviant | it computes something else |" in pages[1]
    assert "| soft | 84.00 / 86.00 | 85.00 | 1.41 | 0.250 | 0.300 | 11.2 |" in pages[1]
    assert "| thin | stage | 0.500 | 0.400 | 1.72 |" in pages[1]
    assert "| 0.25 | 2 | 106.7 M (-12%) within |" in pages[1]
    for page in pages:
        assert "Threats to these numbers" in page and "abc123" in page


def test_page_needs_nothing_from_outside(pages: tuple[str, str]) -> None:
    assert "<script" not in pages[0] and 'src="http' not in pages[0]
    assert pages[0].count("<svg") == 7


def test_unknown_results_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "other.json"
    path.write_text('{"benchmark": "weather"}')
    assert main([str(path), "--output", str(tmp_path / "out.html")]) == 2
    assert "other.json names the benchmark 'weather'" in capsys.readouterr().err
