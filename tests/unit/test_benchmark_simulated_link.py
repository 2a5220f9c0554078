"""The benchmark over a simulated link: what it waits for, and what it refuses to time."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.report.sections import section_of
from benchmarks.simulated_link.__main__ import main
from benchmarks.simulated_link.measure import Setting, measure, sends_as_planned
from benchmarks.simulated_link.wire import SimulatedWire
from gsdist.collectives.cost_model import Link, Transfer
from gsdist.reducers.statistics import StatisticsRecorder
from gsdist.training import detect_launch, process_group

CPU = torch.device("cpu")
LINK = Link(latency=0.001, bandwidth=1e6)
PARAMETERS = 4810
"""Of the network `mlp`: 64 pixels, 64 hidden units, 10 digits."""


def test_a_collective_waits_as_long_as_among_so_many_workers() -> None:
    wire, recorder = SimulatedWire(LINK, 4, CPU), StatisticsRecorder(dense_bytes_per_step=0)
    recorder.issued("ring_all_reduce", torch.zeros(1000))
    assert wire.seconds() == 0
    with wire.in_place():
        recorder.issued("ring_all_reduce", torch.zeros(1000))
    # 6 messages of 1 ms, and 6000 bytes at one a microsecond; a pause is never too short
    assert wire.seconds() >= 0.012
    recorder.issued("ring_all_reduce", torch.zeros(1000))
    assert wire.seconds() == 0
    recorder.end_step()
    assert recorder.snapshot(residual_norm=0.0).payload_bytes == 12_000


def sum_of(size: float) -> Transfer:
    return Transfer(kind="ring_all_reduce", size=size)


def test_bytes_are_compared_over_a_period_kind_by_kind() -> None:
    planned = [(1, (sum_of(100), sum_of(20))), (2, (sum_of(8),))]
    between = (sum_of(8),)
    assert sends_as_planned([(sum_of(60), sum_of(60)), between, between], planned)
    assert not sends_as_planned([(sum_of(100), sum_of(20)), between], planned)
    gathered = (Transfer(kind="ring_all_gather", size=120),)
    assert not sends_as_planned([gathered, between, between], planned)


def test_a_method_whose_messages_depend_on_the_workers_is_not_timed() -> None:
    setting = Setting(
        model="mlp",
        methods=["top-k-proposals"],
        density=0.1,
        batch=4,
        device=CPU,
        link=Link(latency=1e-6, bandwidth=1e9),
        ranks=16,
        rounds=1,
    )
    with process_group(detect_launch(), timedelta(seconds=30)):
        (cell,) = measure(setting)
    assert not cell["correct"]
    assert "does not send what the planner says" in cell["fault"]


def test_cells_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "simulated.json"
    options = ["--models", "mlp", "--methods", "dense-fp32", "power-sgd", "gs-sgd", "--ranks", "4"]
    options += ["--bandwidths", "1Gbit", "--latency", "10us", "--rounds", "2", "--batch", "4"]
    # gs-SGD has no room for 30x in so small a network, which is said and not timed
    assert main([*options, "--json", str(target)]) == 1
    report: dict[str, Any] = json.loads(target.read_text())
    cells = {cell["method"]: cell for cell in report["simulated_cells"]}
    assert [cell["correct"] for cell in cells.values()] == [True, True, False]
    dense, low_rank = cells["dense-fp32"], cells["power-sgd"]
    assert dense["d"] == PARAMETERS
    assert dense["payload_bytes"] == 4 * PARAMETERS
    # a ring of 4: 6 messages, 1.5 times the bytes
    assert dense["planned_wire_seconds"] == pytest.approx(60e-6 + 6 * PARAMETERS / 125e6)
    assert low_rank["payload_bytes"] < dense["payload_bytes"]
    for cell in (dense, low_rank):
        assert cell["wire_seconds"] >= cell["planned_wire_seconds"] - 1e-9
        assert len(cell["seconds"]) == 2
    assert "NOT CORRECT: ConfigError" in capsys.readouterr().out

    section = section_of("simulated.json", report)
    assert [row[0] for row in section.tables[0].rows] == ["dense-fp32", "power-sgd", "gs-sgd"]
