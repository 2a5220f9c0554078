"""Be one rank of a lab: check and time every method; write what this rank saw as JSON.

Started by `python -m benchmarks.exchange`: `python -m benchmarks.exchange.worker PLAN ADDRESS KEY`, the
latter two the referee's.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.exchange.driver import Driver, Exchange
from benchmarks.exchange.gate import find_fault
from benchmarks.exchange.methods import METHODS
from benchmarks.exchange.plan import Plan, chunks
from benchmarks.exchange.prediction import FRAMING, Calibration
from benchmarks.exchange.referee import Referee
from benchmarks.gradients import CapturedGradients
from gsdist.collectives import probe_link
from gsdist.collectives.cost_model import Link
from gsdist.planner import Candidate, measure_in_group
from gsdist.reducers import ReducerConfig

_SMALL, _SMALL_ROUNDS = 32, 50
_LARGE, _LARGE_ROUNDS = 2**20, 2
_SLOW_SECONDS = 5.0
_REPETITION_SECONDS = 0.1
"""Of exchanges that follow one another in a repetition: ranks start up to some milliseconds apart, as their
processes wake, which as in training only the first exchange may feel."""
_GROUP_TIMEOUT = timedelta(seconds=300)


@dataclass(kw_only=True, slots=True)
class Series:
    """Collect the repetitions of one method."""

    method: str
    driver: Driver
    exchanges: int
    """In each repetition: whole cycles of the method."""
    seconds: list[float] = field(default_factory=list)
    """Of the slowest rank, one entry per repetition: the mean of its exchanges."""
    interface_bytes: list[float] = field(default_factory=list)
    own: list[Exchange] = field(default_factory=list)

    def exchange(self, captured: list[Tensor], turn: int) -> Exchange:
        """Exchange one of the captured gradients."""
        self.driver.buffer.copy_(captured[turn % len(captured)])
        return self.driver.exchange()

    def wants_more(self, plan: Plan) -> bool:
        """Tell whether another repetition is due; alike on all ranks."""
        done, spent = len(self.seconds), self.exchanges * sum(self.seconds)
        slow = done > 0 and max(self.seconds) > _SLOW_SECONDS
        least = min(3, plan.least_repetitions) if slow else plan.least_repetitions
        return done < least or (spent < plan.seconds and done < plan.most_repetitions)


def main(path: str, address: str, key: str) -> None:
    """Run the plan and print the results of this rank."""
    plan = Plan.read(Path(path))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=_GROUP_TIMEOUT)
    group = dist.group.WORLD
    assert group is not None
    referee = Referee(address, key, dist.get_rank())
    calibration, link = calibrate(group, referee), probe_link(group)
    results = {
        "calibration": asdict(calibration),
        "link": asdict(link),
        "cells": [
            cell
            for gradients in plan.gradients
            for methods in chunks(plan.methods, gradients.dimension, dist.get_world_size())
            for cell in measure(plan, gradients, methods, link, group, referee)
        ],
    }
    referee.meet()
    dist.destroy_process_group()
    print(json.dumps(results))


def calibrate(group: dist.ProcessGroup, referee: Referee) -> Calibration:
    """Measure what a message costs and how fast a large all-reduce is."""
    ranks = dist.get_world_size(group)
    messages = 2 * (ranks - 1)
    seconds, traffic = _all_reduces(_SMALL, _SMALL_ROUNDS, group, referee)
    payload = FRAMING * messages / ranks * 4 * _SMALL
    large_seconds, large_traffic = _all_reduces(_LARGE, _LARGE_ROUNDS, group, referee)
    return Calibration(
        seconds_per_message=seconds / messages,
        bytes_per_message=(traffic - payload) / messages,
        bytes_per_second=large_traffic / large_seconds,
    )


def _all_reduces(
    numel: int, rounds: int, group: dist.ProcessGroup, referee: Referee
) -> tuple[float, float]:
    """Return seconds and bytes at the busiest interface of one all-reduce, averaged over `rounds`."""
    buffer = torch.zeros(numel)
    dist.all_reduce(buffer, group=group)
    before = referee.meet()
    start = time.perf_counter()
    for _ in range(rounds):
        dist.all_reduce(buffer, group=group)
    after = referee.meet(time.perf_counter() - start)
    return max(after.payloads) / rounds, after.busiest_since(before) / rounds


def measure(
    plan: Plan,
    gradients: CapturedGradients,
    methods: Sequence[str],
    link: Link,
    group: dist.ProcessGroup,
    referee: Referee,
) -> list[dict[str, Any]]:
    """Check these methods, then time them in turn; return one cell each."""
    captured = gradients.of(dist.get_rank(group))
    faults = {
        method: find_fault(method, plan.density, gradients.shapes, captured, group, referee)
        for method in methods
    }
    sound = [method for method in methods if faults[method] is None]
    planned = plan_exchanges(plan, gradients, sound, link, group)
    every = []
    for method in sound:
        driver = Driver(METHODS[method](plan.density), gradients.shapes, group)
        every.append(Series(method=method, driver=driver, exchanges=driver.period))
    for series in every:
        for turn in range(series.driver.settling):
            series.exchange(captured, turn)
    for _ in range(plan.warm_up):
        for series in every:
            cycle = series.exchanges * _repeat(series, captured, referee, counts=False)
            series.exchanges *= max(1, round(_REPETITION_SECONDS / cycle))
    turn = 0
    while active := [series for series in every if series.wants_more(plan)]:
        for position in range(len(active)):  # another one begins in every round
            _repeat(active[(position + turn) % len(active)], captured, referee)
        turn += 1
    cells = {series.method: _cell(series) for series in every}
    return [
        {
            "model": gradients.model,
            "method": method,
            "fault": faults[method],
            "planned": planned.get(method),
        }
        | cells.get(method, {})
        for method in methods
    ]


def plan_exchanges(
    plan: Plan,
    gradients: CapturedGradients,
    methods: Sequence[str],
    link: Link,
    group: dist.ProcessGroup,
) -> dict[str, dict[str, float]]:
    """Return, by method, what the planner would measure before a run."""
    configs = {method: METHODS[method](plan.density) for method in methods}
    candidates = [
        Candidate(name=method, config=config, measured_as=method)
        for method, config in configs.items()
        if isinstance(config, ReducerConfig)
    ]
    measured = measure_in_group(candidates, gradients.shapes, link, group)
    return {name: asdict(one) for name, one in measured.items()}


def _repeat(
    series: Series, captured: list[Tensor], referee: Referee, *, counts: bool = True
) -> float:
    """Return the slowest rank's seconds per exchange."""
    before = referee.meet()
    first, count = len(series.seconds), series.exchanges
    own = Exchange.mean([series.exchange(captured, first + i) for i in range(count)])
    after = referee.meet(own.seconds)
    slowest = float(max(after.payloads))
    if counts:
        series.own.append(own)
        series.seconds.append(slowest)
        series.interface_bytes.append(after.busiest_since(before) / count)
    return slowest


def _cell(series: Series) -> dict[str, Any]:
    return {
        "seconds": series.seconds,
        "interface_bytes": series.interface_bytes,
        "own": [asdict(one) for one in series.own],
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
