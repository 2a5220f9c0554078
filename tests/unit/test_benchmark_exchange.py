"""The pure parts of the exchange benchmark: plans, predictions, cells, and captured gradients."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import gradients
from benchmarks.exchange.cells import make_cells
from benchmarks.exchange.methods import METHODS
from benchmarks.exchange.plan import Plan, chunks
from benchmarks.exchange.prediction import (
    FRAMING,
    Calibration,
    interface_bytes,
    predicted_seconds,
)
from benchmarks.exchange.referee import Meeting
from benchmarks.exchange.table import HEADER, format_cell
from benchmarks.step import cells as step_cells
from gsdist.collectives.cost_model import Transfer
from gsdist.reducers import REDUCER_CONFIGS
from gsdist.reducers.statistics import is_wire

CALIBRATION = Calibration(seconds_per_message=0.001, bytes_per_message=100, bytes_per_second=1e6)


@pytest.mark.parametrize(
    ("kinds", "ranks", "buffers", "messages"),
    [
        (["ring_all_reduce"], 4, 1.5, 6),
        (["ring_all_gather"], 4, 3, 3),
        (["tree_all_reduce"], 8, 3, 3),
        # three arrive at the server; what it answers leaves by the other direction
        (["gather", "tree_broadcast"], 4, 3, 3),
        # up and down a tree: two buffers each way at its root
        (["tree_reduce", "tree_broadcast"], 4, 2, 2),
        (["tree_broadcast"], 5, 3, 3),
    ],
)
def test_bytes_of_the_root_in_one_direction(
    kinds: list[str], ranks: int, buffers: float, messages: int
) -> None:
    transfers = [Transfer(kind=kind, size=1000) for kind in kinds]
    expected = 1000 * buffers * FRAMING + 100 * messages
    assert interface_bytes(transfers, ranks, 100) == pytest.approx(expected)


@pytest.mark.parametrize(("rate", "per_second"), [(1e9, 125e6), (None, 1e6)])
def test_seconds_are_those_of_messages_and_frames(rate: float | None, per_second: float) -> None:
    transfers = [Transfer(kind="tree_all_reduce", size=1e6)]
    got = predicted_seconds(transfers, 4, CALIBRATION, rate=rate)
    assert got == pytest.approx(4 * 0.001 + 4e6 * 1514 / 1448 / per_second)


def test_the_busier_direction_of_the_busiest_link_counts() -> None:
    before = Meeting(payloads=[], links=[(10, 20), (30, 40)])
    after = Meeting(payloads=[], links=[(15, 27), (36, 41)])
    assert after.busiest_since(before) == 7


def test_methods_are_split_so_that_they_fit_into_memory() -> None:
    names = [str(number) for number in range(13)]
    assert list(chunks(names, 270_000, 4)) == [names]
    parts = list(chunks(names, 25_600_000, 8))
    assert [name for part in parts for name in part] == names
    assert len(parts) > 4
    assert list(chunks(names, 10**12, 8)) == [[name] for name in names]


def test_every_reducer_is_compared_at_the_same_density() -> None:
    configs = [make(0.01) for make in METHODS.values()]
    assert {type(config) for config in configs} >= set(REDUCER_CONFIGS.values())
    assert {getattr(config, "density", 0.01) for config in configs} == {0.01}
    assert {getattr(config, "warmup_steps", 0) for config in configs} == {0}


def test_a_plan_survives_the_file(tmp_path: Path) -> None:
    captured = gradients.CapturedGradients(
        model="mlp", shapes={"weight": (2, 3), "bias": (2,)}, folder="somewhere"
    )
    plan = Plan(
        methods=("gs-sgd",),
        gradients=(captured,),
        density=0.1,
        seconds=1.0,
        least_repetitions=5,
        most_repetitions=9,
        warm_up=2,
    )
    (tmp_path / "plan.json").write_text(plan.text())
    again = Plan.read(tmp_path / "plan.json")
    assert json.dumps(again.gradients[0].shapes) == json.dumps(captured.shapes)
    assert again.gradients[0].dimension == 8
    assert again.methods == plan.methods


def report(rank: int) -> dict[str, Any]:
    """Return what a rank of two would say about one good and one bad method."""
    own = [
        {
            "seconds": 0.010,
            "cpu_seconds": 0.002 + rank,
            "local_cpu_seconds": 0.001 + rank,
            "phases": {"encode": 0.003, "allreduce_table": 0.006},
            "payload_bytes": size,
            "transfers": [{"kind": "ring_all_reduce", "size": size}],
            "exchanges": 1,
        }
        for size in (1000, 3000)
    ]
    good = {
        "model": "mlp",
        "method": "gs-sgd",
        "fault": None,
        "planned": {"local_seconds": 0.003, "unmodelled_seconds": 0.001},
        "seconds": [0.012, 0.014],
        "interface_bytes": [1150, 3250],
        "own": own,
    }
    bad = {"model": "mlp", "method": "top-k", "fault": "ranks hold different results"}
    calibration = {
        "seconds_per_message": 0.001,
        "bytes_per_message": 100,
        "bytes_per_second": 1e6,
    }
    return {"calibration": calibration, "cells": [good, bad]}


def cells() -> list[dict[str, Any]]:
    return make_cells(
        [report(0), report(1)],
        rate="1gbit",
        bits_per_second=1e9,
        dimensions={"mlp": 4810},
        density=0.004,
    )


def test_cells_hold_what_programs_read() -> None:
    good, bad = cells()
    assert good["correct"] and not bad["correct"]
    assert bad["fault"] == "ranks hold different results"
    assert good["seconds_median"] == pytest.approx(0.013)
    assert good["seconds"] == [0.012, 0.014]
    assert good["planned"] == {"local_seconds": 0.003, "unmodelled_seconds": 0.001}
    assert good["wire_seconds"] == pytest.approx(0.006)
    assert good["local_seconds"] == pytest.approx(0.004)
    assert good["cpu_seconds"] == pytest.approx(1.002)
    assert good["payload_bytes"] == 2000
    assert good["interface_bytes"] == 2200
    assert good["predicted_bytes"] == pytest.approx(2000 * FRAMING + 200)
    assert good["predicted_seconds"] == pytest.approx(0.002 + 2000 * FRAMING / 125e6 + 0.004)
    assert good["projected_seconds"] == pytest.approx(0.002 + 2000 * FRAMING / 125e6 + 1.001)
    assert (good["d"], good["ranks"], good["rate"]) == (4810, 2, "1gbit")
    json.dumps([good, bad])


def test_the_table_shows_good_and_bad_cells() -> None:
    good, bad = (format_cell(cell) for cell in cells())
    assert "13.00" in good and len(good) == len(HEADER)
    assert "NOT CORRECT: ranks hold different results" in bad


def test_phases_on_the_wire_and_off_it() -> None:
    wire = ["allreduce_left", "allgather_entries", "gather_tables", "broadcast", "tree", "barrier"]
    assert all(is_wire(phase) for phase in wire)
    local = ["compensate", "encode", "decode", "select", "merge", "apply"]
    assert not any(is_wire(phase) for phase in local)


def test_workers_have_gradients_of_their_own_whoever_else_is_captured() -> None:
    source = gradients.SOURCES["mlp"]
    both = {(w, s): g for w, s, g, _ in gradients.capture(source, [0, 1])}
    alone = {(w, s): g for w, s, g, _ in gradients.capture(source, [1])}
    assert all(torch.equal(gradient, both[key]) for key, gradient in alone.items())
    distinct = [gradient.numpy().tobytes() for gradient in both.values()]
    assert len(set(distinct)) == 2 * gradients.CAPTURES
    assert all(float(gradient.norm()) > 0 for gradient in both.values())


def test_damaged_gradients_are_captured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradients, "FOLDER", tmp_path)
    first = gradients.load("mlp", 2)
    assert first.dimension == 64 * 64 + 64 + 64 * 10 + 10
    expected = [gradient.clone() for gradient in first.of(1)]
    victim = tmp_path / "mlp" / "worker1-step0.npy"
    np.save(victim, np.zeros(first.dimension, np.float32))
    again = gradients.load("mlp", 3)
    assert all(torch.equal(a, b) for a, b in zip(again.of(1), expected, strict=True))
    assert len(again.of(2)) == gradients.CAPTURES


def step_report(rank: int) -> dict[str, Any]:
    """Return what a rank of two would say about one good and one bad contender."""
    own = {
        "forward": 0.01,
        "backward": 0.02,
        "optimizer": 0.001,
        "seconds": 0.031,
        "cpu_seconds": 0.03 + rank,
        "phases": {"encode": 0.004},
        "payload_bytes": 500,
    }
    good = {
        "model": "mlp",
        "d": 4810,
        "method": "gs-sgd",
        "fault": None,
        "peak_bytes": 10**6 * (1 + rank),
        "seconds": [0.05, 0.07, 0.06],
        "seconds_alone": [0.02, 0.03, 0.04],
        "interface_bytes": [1000, 1000, 1300],
        "interface_bytes_alone": [100, 100, 100],
        "own": [own] * 3,
    }
    bad = {"model": "mlp", "d": 4810, "method": "top-k", "fault": "ranks differ"}
    return {"cells": [good, bad]}


def test_step_cells_hold_what_programs_read() -> None:
    reports = [step_report(0), step_report(1)]
    good, bad = step_cells.make_cells(reports, rate="1gbit", batch=8, density=0.004)
    assert good["seconds_median"] == pytest.approx(0.06)
    # pair by pair 30, 40 and 20 ms, whatever the medians
    assert good["exposed_seconds"] == pytest.approx(0.03)
    assert good["cpu_seconds"] == pytest.approx(1.03)
    assert good["peak_bytes"] == 2 * 10**6
    assert (good["interface_bytes"], good["ddp_buffer_bytes"]) == (1100, 100)
    assert good["correct"] and not bad["correct"]
    assert len(step_cells.format_cell(good)) == len(step_cells.HEADER)
    assert "ranks differ" in step_cells.format_cell(bad)
    json.dumps([good, bad])
