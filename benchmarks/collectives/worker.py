"""Be one rank: time every backend, operation and size; rank 0 writes what was found as JSON.

Started by mpirun: `python -m benchmarks.collectives.worker PLAN OUTPUT`. What is compared most closely,
bare MPI and the process group on it, takes turns in both orders, so that both meet the same noise and follow
one another equally often; gloo comes afterwards, as its threads and copies disturb who follows it. All use
the same buffers, because where those lie in memory makes a difference of its own.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from itertools import cycle, permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from benchmarks.bootstrap import interval_of_ratio
from benchmarks.collectives.contenders import BARE, buffers_of, prepare
from gsdist.collectives.mpi import BACKEND

_TIMEOUT = timedelta(minutes=10)
_WARM_UP = 2


def main(plan_path: str, output_path: str) -> None:
    """Run the plan."""
    plan = json.loads(Path(plan_path).read_text())
    torch.set_num_threads(1)
    dist.init_process_group(BACKEND, timeout=_TIMEOUT)
    # one core for each rank, as far as there are enough: the scheduler may let two share one for a while
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[dist.get_rank() % len(cores)]})
    gloo = dist.new_group(backend="gloo", timeout=_TIMEOUT)
    cells = []
    for operation in plan["operations"]:
        for size in plan["sizes"]:
            cells += _measure(plan, operation, size, gloo)
    if dist.get_rank() == 0:
        Path(output_path).write_text(json.dumps({"cells": cells, "mpi": _library()}))
    dist.destroy_process_group()


def _measure(
    plan: Mapping[str, Any], operation: str, size: int, gloo: dist.ProcessGroup
) -> list[dict[str, Any]]:
    """Time one operation at one size; return one cell per backend."""
    world_size = dist.get_world_size()
    given, output = buffers_of(operation, size, world_size)
    calls: dict[str, Callable[[], object]] = {}
    for backend in plan["backends"]:
        group = gloo if backend == "gloo" else dist.group.WORLD
        assert group is not None
        call = calls[backend] = prepare(backend, operation, group, given, output)
        output.zero_()
        given.fill_(float(operation != "broadcast" or dist.get_rank() == 0))
        call()
        _require_correct(backend, operation, output, world_size)
        given.zero_()  # sums that grow without bound would become slow or infinite
        for _ in range(_WARM_UP):
            call()
    times: dict[str, list[float]] = {}
    for together in ((BARE, BACKEND), ("gloo",)):
        times |= _take_turns(plan, {name: calls[name] for name in together if name in calls})
    compared = [BACKEND] if BARE in times else []
    return [
        {
            "backend": backend,
            "operation": operation,
            "ranks": world_size,
            "bytes": size,
            "repetitions": len(one),
            **{
                f"microseconds_{name}": float(value)
                for name, value in zip(
                    ("p10", "median", "p90"), np.percentile(one, (10, 50, 90)), strict=True
                )
            },
            **(_beside(one, times[BARE]) if backend in compared else {}),
        }
        for backend, one in times.items()
    ]


def _take_turns(
    plan: Mapping[str, Any], calls: Mapping[str, Callable[[], object]]
) -> dict[str, list[float]]:
    """Return the microseconds of every repetition."""
    times: dict[str, list[float]] = {backend: [] for backend in calls}
    orders = cycle(permutations(calls.items()))
    for _ in range(_repetitions(plan, calls)):
        for backend, call in next(orders):
            times[backend].append(_slowest(call))
    return times


def _beside(one: Sequence[float], bare: Sequence[float]) -> dict[str, float]:
    """Return the ratio of the medians and its 95 % interval, of two that took turns."""
    low, high = interval_of_ratio(one, bare)
    ratio = float(np.median(one) / np.median(bare))
    return {"over_bare": ratio, "over_bare_low": low, "over_bare_high": high}


def _slowest(call: Callable[[], object]) -> float:
    """Return the microseconds of the slowest rank, all having started together."""
    dist.barrier()
    start = time.perf_counter()
    call()
    own = torch.tensor([1e6 * (time.perf_counter() - start)], dtype=torch.float64)
    dist.all_reduce(own, dist.ReduceOp.MAX)
    return own.item()


def _repetitions(plan: Mapping[str, Any], calls: Mapping[str, Callable[[], object]]) -> int:
    """Return how often all calls fit in the time of a cell."""
    if not calls:
        return 0
    once = 1e-6 * sum(_slowest(call) for call in calls.values())
    return int(
        min(plan["most_repetitions"], max(plan["least_repetitions"], plan["seconds"] / once))
    )


def _require_correct(backend: str, operation: str, output: torch.Tensor, ranks: int) -> None:
    expected = ranks if operation in ("all_reduce", "reduce_scatter") else 1
    if not output.eq(expected).all():
        raise RuntimeError(f"{operation} of {backend} gave a wrong result")


def _library() -> str:
    from mpi4py import MPI

    return MPI.Get_library_version().splitlines()[0].strip(" \t\0")


if __name__ == "__main__":
    main(*sys.argv[1:])
