"""Be one rank of a lab: train with every way of exchanging; write what this rank saw as JSON.

Started by `python -m benchmarks.step`: `python -m benchmarks.step.worker PLAN ADDRESS KEY`, the latter two
the referee's. Every step of a contender is followed by one of the same model that does not communicate, so
that both meet the same noise.
"""

import copy
import ctypes
import gc
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from benchmarks.exchange.referee import Referee
from benchmarks.gradients import SOURCES, draw_batch, network_of, workload_of
from benchmarks.step.contender import NO_COMMUNICATION, Contender, Step
from gsdist.errors import GsdistError

_GROUP_TIMEOUT = timedelta(seconds=300)
_BATCHES = 4
_WARM_UP = 3
"""DDP arranges its buckets anew after the first step, PowerSGD of torch begins with the third."""


@dataclass(kw_only=True, slots=True)
class Series:
    """Collect the steps of one contender, or of those without communication beside it."""

    contender: Contender
    seconds: list[float] = field(default_factory=list)
    """Of the slowest rank, one entry per repetition: the mean of one cycle of the method."""
    interface_bytes: list[float] = field(default_factory=list)
    own: list[Step] = field(default_factory=list)

    def step(self, batches: Sequence[Any], count: int, referee: Referee) -> None:
        """Train so many steps at the same time as all ranks, and keep the mean figures."""
        turns = range(len(self.seconds), len(self.seconds) + count)
        before = referee.meet()
        own = Step.mean([self.contender.step(batches[turn % len(batches)]) for turn in turns])
        after = referee.meet(own.seconds)
        self.own.append(own)
        self.seconds.append(max(after.payloads))
        self.interface_bytes.append(after.busiest_since(before) / count)


def main(path: str, address: str, key: str) -> None:
    """Run the plan and print the results of this rank."""
    plan = json.loads(Path(path).read_text())
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=_GROUP_TIMEOUT)
    referee = Referee(address, key, dist.get_rank())
    cells = [cell for model in plan["models"] for cell in measure(plan, model, referee)]
    referee.meet()
    dist.destroy_process_group()
    print(json.dumps({"cells": cells}))


def measure(plan: Mapping[str, Any], model: str, referee: Referee) -> list[dict[str, Any]]:
    """Train one model with all contenders; return one cell each."""
    source = SOURCES[model]
    workload = workload_of(source)
    torch.manual_seed(0)
    network = network_of(source, workload)
    batches = [
        draw_batch(source, workload, seed=1000 * step + dist.get_rank(), size=plan["batch"])
        for step in range(_BATCHES)
    ]
    # from here on without the data set, which would count as the contenders' memory
    workload = workload_of(source)
    cells = []
    for name in plan["contenders"]:
        cell = _measure_one(plan, name, network, workload, batches, referee)
        numel = sum(parameter.numel() for parameter in network.parameters())
        cells.append({"model": model, "d": numel, "method": name} | cell)
    return cells


def _measure_one(
    plan: Mapping[str, Any],
    name: str,
    network: nn.Module,
    workload: Any,
    batches: Sequence[Any],
    referee: Referee,
) -> dict[str, Any]:
    _give_memory_back()
    memory = _resident_bytes("VmRSS")
    try:
        tried = Contender(name, copy.deepcopy(network), workload, plan["density"])
        for batch in batches[:_WARM_UP]:
            tried.step(batch)
    except GsdistError as error:
        # raised alike on all ranks
        return {"fault": f"{type(error).__name__}: {error}"}
    peak = _resident_bytes("VmHWM") - memory
    digests = referee.meet(tried.digest()).payloads
    if name != NO_COMMUNICATION and len(set(digests)) > 1:
        return {"fault": "ranks hold different parameters"}
    alone = Contender(NO_COMMUNICATION, copy.deepcopy(network), workload, plan["density"])
    for batch in batches[:_WARM_UP]:
        alone.step(batch)
    for turn in range(tried.settling):
        tried.step(batches[turn % len(batches)])
    with_exchange, without = Series(contender=tried), Series(contender=alone)
    while _wants_more(with_exchange, plan):
        with_exchange.step(batches, tried.period, referee)
        without.step(batches, tried.period, referee)
    return {
        "fault": None,
        "peak_bytes": peak,
        "seconds": with_exchange.seconds,
        "seconds_alone": without.seconds,
        "interface_bytes": with_exchange.interface_bytes,
        "interface_bytes_alone": without.interface_bytes,
        "own": [asdict(step) for step in with_exchange.own],
    }


def _wants_more(series: Series, plan: Mapping[str, Any]) -> bool:
    done = len(series.seconds)
    return done < plan["least_steps"] or (
        sum(series.seconds) < plan["seconds"] and done < plan["most_steps"]
    )


def _give_memory_back() -> None:
    """Return what earlier contenders left to the system, and forget how much it was."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    # Linux: 5 sets the high-water mark of resident memory back to the present
    Path("/proc/self/clear_refs").write_text("5")


def _resident_bytes(name: str) -> int:
    """Return resident memory now (VmRSS) or at its highest (VmHWM), in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"no {name} in /proc/self/status")


if __name__ == "__main__":
    main(*sys.argv[1:])
