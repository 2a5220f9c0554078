"""The benchmark report shows what is in the JSON, lost and failed cells included, and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report.__main__ import main

ENVIRONMENT = {"commit": "abc123", "date": "2026-01-01", "cpu": "some cpu", "torch": "2.99"}


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
        "rows": [
            {"method": "some-method", "workers": 64, "budget": 10, "seed": 0}
            | {"wire_compression": 9.87, "accuracy": 0.4321, "loss": 1.234}
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
    "collectives.json": {
        "cells": [
            {"backend": backend, "operation": "all_reduce", "ranks": 4, "bytes": 65_536}
            | {"microseconds_median": microseconds, "rate": "5gbit"}
            for backend, microseconds in (("bare", 77.12), ("wrapped", 126.34))
        ]
    },
    "kernels.json": {"encode_over_read": 3.21, "select_over_read": 2.34},
}


@pytest.fixture
def pages(tmp_path: Path) -> tuple[str, str]:
    for name, result in RESULTS.items():
        (tmp_path / name).write_text(json.dumps({**result, "environment": ENVIRONMENT}))
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
    assert "| some-method | 10 | 0 | 9.9 | 43.2 | 1.234 |" in pages[1]
    assert "| overlapping | 80.0 | -1.0 | 30.0 | 40.0 | 70 | 12.3 | 1.2 |" in pages[1]
    assert "| rotated | 0.900 | 0.987 |" in pages[1]
    assert "| encode over reading the vector | 3.21 |" in pages[1]
    for page in pages:
        assert "Threats to these numbers" in page and "abc123" in page


def test_page_needs_nothing_from_outside(pages: tuple[str, str]) -> None:
    assert "<script" not in pages[0] and 'src="http' not in pages[0]
    assert pages[0].count("<svg") == 3


def test_unknown_results_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "other.json"
    path.write_text('{"weather": "fine"}')
    assert main([str(path), "--output", str(tmp_path / "out.html")]) == 2
    assert "other.json holds the keys ['weather']" in capsys.readouterr().err
