"""Say what it costs to be told of failures: exchanges with all guards on and with them taken out.

Run ``python -m benchmarks.guards``. Two workers exchange real gradients over links of 1 Gb/s, in blocks with
and without guards by turns, and processor seconds of all threads are compared. Guards are the record of
collectives and the checks that all ranks sum the same and that sums are finite. The product has no switch for
any of this; here the functions are replaced. What many steps share is too rare for blocks, so it is timed by
itself and added: the ranks' comparison, as often as a run of such short steps makes it, and the hash of all
parameters, every 1000 steps.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import timedelta
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.bootstrap import interval_of_ratio
from benchmarks.exchange.driver import Driver
from benchmarks.exchange.methods import METHODS, Config
from benchmarks.gradients import CapturedGradients, load
from benchmarks.netlab import LabUnavailable, NetworkLab
from benchmarks.output import begin, write_report
from gsdist.reducers.agreement_lanes import LANES
from gsdist.reducers.compressed import CompressedReducer
from gsdist.reducers.factors import FactorConfig
from gsdist.reducers.gs_sgd import GsSgdReducer
from gsdist.training.monitor import RankMonitor, parameter_hash

SCHEMA = 1
_MODELS = ("resnet20", "gpt-1m")
_METHODS = ("dense-fp32", "gs-sgd", "gs-sgd-paper", "top-k-proposals", "power-sgd")
_RANKS, _RATE = 2, "1gbit"
_DENSITY = 0.004
_EXCHANGES = 10
"""Per block, at least; whole rounds of a method that repeats itself, or blocks would differ by themselves."""
_MONITOR_INTERVAL, _HASH_INTERVAL = 10, 1000
_COMPARISONS = 20
_SETTLING_SECONDS = 0.002
"""In which the threads of a backend are done with a comparison that nobody waits for."""
_TIME_LIMIT = 900.0


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table, write the JSON; 3 when there can be no lab."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guards", description=__doc__)
    parser.add_argument("--blocks", type=int, default=40, help="with and without guards, per cell")
    parser.add_argument(
        "--control",
        action="store_true",
        help="take nothing out: how far from 0 the same measurement is of nothing",
    )
    parser.add_argument("--json", metavar="PATH", help="write the result there; '-' is stdout")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.worker:
        print(json.dumps(_work(options.blocks, control=options.control)))
        return 0
    described, out = begin(options.json, threads=1)
    for model in _MODELS:
        load(model, _RANKS)
    try:
        with NetworkLab(_RANKS, _RATE, offloads=True) as lab:
            command = [sys.executable, "-m", "benchmarks.guards", "--worker"]
            command += ["--blocks", str(options.blocks), *["--control"] * options.control]
            run = lab.run(command, timeout=_TIME_LIMIT)
    except LabUnavailable as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    run.check()
    cells = _cells([json.loads(result.stdout) for result in run.ranks])
    print(f"\n{'model':<12}{'method':<18}{'CPU ms':>8}{'guards':>9}   95 % interval", file=out)
    for cell in cells:
        low, high = cell["interval"]
        print(
            f"{cell['model']:<12}{cell['method']:<18}{1e3 * cell['cpu_seconds']:>8.2f}"
            f"{cell['overhead']:>+9.2%}   {low:+.2%} to {high:+.2%}",
            file=out,
        )
    report = {
        "benchmark": "guards",
        "schema": SCHEMA,
        "environment": described,
        "control": options.control,
        "guard_cells": cells,
    }
    write_report(report, options.json)
    return 0


def _cells(reports: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Add up the ranks; the last cell is all of them together."""
    cells = [
        _added(ranks, ranks[0]["model"], ranks[0]["method"]) for ranks in zip(*reports, strict=True)
    ]
    return [*cells, _added(cells, "all", "together")]


def _added(parts: Sequence[Mapping[str, Any]], model: str, method: str) -> dict[str, Any]:
    """Add seconds block by block, and compare them."""
    guarded, bare = (
        [sum(block) for block in zip(*(part[kind] for part in parts), strict=True)]
        for kind in ("guarded", "bare")
    )
    low, high = interval_of_ratio(guarded, bare)
    without = statistics.median(bare)
    return {
        "model": model,
        "method": method,
        "cpu_seconds": without,
        "overhead": statistics.median(guarded) / without - 1,
        "interval": [low - 1, high - 1],
        "guarded": guarded,
        "bare": bare,
    }


# ---- a rank ----------------------------------------------------------------------------------------------


def _work(blocks: int, *, control: bool) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    cells = [
        _measure(load(model, _RANKS), method, blocks, control=control)
        for model in _MODELS
        for method in _METHODS
    ]
    dist.barrier()
    dist.destroy_process_group()
    return cells


def _measure(
    gradients: CapturedGradients, method: str, blocks: int, *, control: bool
) -> dict[str, Any]:
    """Return processor seconds per exchange of this rank, block by block."""
    group = dist.group.WORLD
    assert group is not None
    captured = gradients.of(dist.get_rank())
    config = METHODS[method](_DENSITY)
    driver = Driver(config, gradients.shapes, group)
    count = driver.period * math.ceil(_EXCHANGES / driver.period)
    for turn in range(driver.settling + count):
        driver.buffer.copy_(captured[turn % len(captured)])
        driver.exchange()
    beside = _comparing(driver) + _hashing(driver.buffer)
    seconds: dict[str, list[float]] = {"guarded": [], "bare": []}
    for block in range(2 * blocks):
        # guarded, bare, bare, guarded, ...: a drift favours neither
        kind = "guarded" if block % 4 in (0, 3) else "bare"
        guarded = control or kind == "guarded"
        with nullcontext() if guarded else _without_guards(config):
            spent = _exchange(driver, captured, count)
        seconds[kind].append(spent + guarded * beside)
    return {"model": gradients.model, "method": method, **seconds}


def _exchange(driver: Driver, captured: list[Tensor], count: int) -> float:
    """Exchange a block; return this process's processor seconds per exchange."""
    total = 0.0
    for turn in range(count):
        driver.buffer.copy_(captured[turn % len(captured)])
        total += driver.exchange().cpu_seconds
    return total / count


def _comparing(driver: Driver) -> float:
    """Return processor seconds per step of the ranks' comparison where a step is an exchange.

    Between two comparisons there is an exchange, which evicts them from the caches as in a run.
    """
    monitor = RankMonitor(_MONITOR_INTERVAL, _HASH_INTERVAL)
    step, before, seconds, spent = 0, 0, 0.0, []
    for _ in range(_COMPARISONS):
        before, step = step, step + _MONITOR_INTERVAL
        while not monitor.due(step):
            step += _MONITOR_INTERVAL
        seconds += (step - before) * driver.exchange().seconds
        started = time.process_time()
        monitor.exchange(step, stop=False, waited=0.0, seconds=seconds, parameters=None)
        time.sleep(_SETTLING_SECONDS)
        spent.append(time.process_time() - started)
    monitor.finish()
    return statistics.median(spent) / (step - before)


def _hashing(parameters: Tensor) -> float:
    """Return processor seconds per step of the hash of all parameters."""
    started = time.process_time()
    parameter_hash([parameters])
    return (time.process_time() - started) / _HASH_INTERVAL


@contextmanager
def _without_guards(config: Config) -> Iterator[None]:
    """Take out of a method whatever finds failures; what is summed keeps its size."""
    done, nothing = nullcontext(), torch.zeros(1, dtype=torch.int64)
    lanes = torch.zeros(1 + LANES)
    with ExitStack() as stack:
        for module in ("all_reduce", "all_gather", "point_to_point"):
            stack.enter_context(patch(f"gsdist.collectives.{module}.guarded", lambda *_: done))
        for module in ("compressed", "gs_sgd_paper"):
            stack.enter_context(patch(f"gsdist.reducers.{module}.all_finite", lambda _: True))
        for name, replacement in {
            "_flag_and_lanes": lambda *_, **__: lanes,
            "_accepts": lambda *_, **__: True,
        }.items():
            stack.enter_context(patch.object(CompressedReducer, name, replacement))
        if isinstance(config, FactorConfig) and config.wire_dtype == "float32":
            # in half precision it is the method that needs it, for the next scale
            stack.enter_context(patch("gsdist.reducers.factors.largest", lambda _: 1.0))
        stack.enter_context(patch.object(GsSgdReducer, "_basis_fingerprint", lambda _: nothing))
        yield


if __name__ == "__main__":
    sys.exit(main())
