"""Time exchanges on two nodes of two workers, all at once and node by node, against the cost model.

Run ``python -m benchmarks.hierarchical``. Links inside a node have one rate, the one link between the nodes a
lower rate. The gradient is random, of the shapes of gpt-1m. Before anything is timed, all ranks must hold
the same bits, and the dense exchange of integers must be exact. All ranks share this machine's processors.

The model: ranks stand in the order of the nodes, so a ring of all four crosses each direction of the link
between the nodes once, and that link is the busiest; node by node only the two leaders' ring crosses it, and
inside a node there are an all-reduce and a broadcast at the higher rate. What collectives take is what the
planner's link probe finds: among all four ranks, inside a node, and between the leaders. Local computing is
measured.
"""

import argparse
import hashlib
import json
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import timedelta
from itertools import product
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.gradients import SOURCES, network_of, workload_of
from benchmarks.netlab import LabUnavailable, NetworkLab
from benchmarks.output import begin, write_report
from gsdist.collectives import NodeGroups, Nodes, probe_link
from gsdist.collectives.cost_model import Link, Transfer, seconds_of
from gsdist.planner.traffic import mean_seconds, steps_of
from gsdist.reducers import (
    DenseConfig,
    FlatLayout,
    GradientBucket,
    GsSgdConfig,
    OkTopKConfig,
    Reducer,
    ReducerConfig,
    TopKConfig,
    build_hierarchical_reducer,
    build_reducer,
    lay_out,
)
from gsdist.reducers.statistics import wire_seconds

SCHEMA = 1
NODES = Nodes(sizes=(2, 2))
METHODS: Mapping[str, ReducerConfig] = {
    "dense": DenseConfig(),
    "gs-sgd": GsSgdConfig(),
    "top-k": TopKConfig(warmup_steps=0),
    "ok-top-k": OkTopKConfig(warmup_steps=0),
}
_MODEL = "gpt-1m"
_ROUNDS = 15
_WARM_UP = {"gs-sgd": 31}
"""Exchanges after which gs-SGD has found its rhythm; the rounds then hold its mean mixture of steps."""
_SHORT_WARM_UP = 2
_TIME_LIMIT = 900.0


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table, write the JSON; 3 when there can be no lab."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hierarchical", description=__doc__)
    parser.add_argument("--inside", default="1gbit", help="rate of the workers' links")
    parser.add_argument("--between", default="100mbit", help="rate of the link between the nodes")
    parser.add_argument("--json", metavar="PATH", help="write the result there; '-' is stdout")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.worker:
        print(json.dumps(_work()))
        return 0
    described, out = begin(options.json, threads=1)
    rates = {"rate": options.inside, "uplink_rate": options.between}
    try:
        with NetworkLab(NODES.world_size, groups=2, offloads=True, **rates) as lab:
            lab.verify_rates()
            command = [sys.executable, "-m", "benchmarks.hierarchical", "--worker"]
            run = lab.run(command, timeout=_TIME_LIMIT)
    except LabUnavailable as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    run.check()
    reports = [json.loads(result.stdout) for result in run.ranks]
    cells = _cells(reports)
    print(f"\n{'method':<10}{'way':<14}{'ms':>9}{'predicted':>11}{'local ms':>10}", file=out)
    for cell in cells:
        print(
            f"{cell['method']:<10}{cell['way']:<14}{1e3 * cell['seconds']:>9.1f}"
            f"{1e3 * cell['predicted_seconds']:>11.1f}{1e3 * cell['local_seconds']:>10.1f}",
            file=out,
        )
    report = {
        "benchmark": "hierarchical",
        "schema": SCHEMA,
        "environment": described,
        **rates,
        "links": reports[0]["links"],
        "hierarchical_cells": cells,
    }
    write_report(report, options.json)
    return 0


# ---- a rank ----------------------------------------------------------------------------------------------


def _work() -> dict[str, Any]:
    """Check and time every method both ways, as one rank."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    world = dist.group.WORLD
    assert world is not None
    groups = NodeGroups.open(NODES, world)
    parameters = dict(network_of(SOURCES[_MODEL], workload_of(SOURCES[_MODEL])).named_parameters())
    links = {"all": asdict(probe_link(world)), "inside": asdict(probe_link(groups.within))}
    if groups.leaders is not None:
        links["leaders"] = asdict(probe_link(groups.leaders))
    dist.barrier()
    results: dict[str, Any] = {"links": links}
    for name, config in METHODS.items():
        ways = {
            "flat": build_reducer(config, parameters, world),
            "node by node": build_hierarchical_reducer(config, parameters, groups),
        }
        results[name] = {
            way: _timed(reducer, layout, name) for way, (layout, reducer) in ways.items()
        }
    dist.destroy_process_group()
    return results


def _timed(reducer: Reducer, layout: FlatLayout, method: str) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(dist.get_rank())
    integers = torch.randint(-99, 100, (layout.numel,), generator=generator).float()
    digest = _check(reducer, layout, integers, method)
    gradient = torch.randn(layout.numel, generator=generator)
    for _ in range(_WARM_UP.get(method, _SHORT_WARM_UP)):
        _exchange(reducer, layout, gradient.clone())
    seconds, local = [], []
    for _ in range(_ROUNDS):
        dist.barrier()
        before, start = _on_wire(reducer), time.perf_counter()
        _exchange(reducer, layout, gradient.clone())
        seconds.append(time.perf_counter() - start)
        local.append(seconds[-1] - (_on_wire(reducer) - before))
    return {"digest": digest, "seconds": seconds, "local_seconds": local}


def _check(reducer: Reducer, layout: FlatLayout, integers: torch.Tensor, method: str) -> str:
    """Exchange integers once; return a hash of the result, which for dense must be their mean."""
    result = integers.clone()
    _exchange(reducer, layout, result)
    if method == "dense":
        dist.all_reduce(integers)
        assert torch.equal(result, integers / NODES.world_size), "the dense average is not exact"
    return hashlib.sha256(result.numpy().data).hexdigest()


def _exchange(reducer: Reducer, layout: FlatLayout, buffer: torch.Tensor) -> None:
    reducer.push(GradientBucket.whole(layout, buffer))
    reducer.finish()


def _on_wire(reducer: Reducer) -> float:
    return wire_seconds(reducer.statistics().seconds)


# ---- all of them -----------------------------------------------------------------------------------------


def _cells(reports: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Combine the ranks' reports; a time is the mean over rounds of the slowest rank's."""
    links = {where: Link(**link) for where, link in reports[0]["links"].items()}
    parameters = dict(network_of(SOURCES[_MODEL], workload_of(SOURCES[_MODEL])).named_parameters())
    cells = []
    for method, way in product(METHODS, ("flat", "node by node")):
        own = [report[method][way] for report in reports]
        assert len({one["digest"] for one in own}) == 1, f"{method}, {way}: ranks disagree"
        rounds = zip(*(one["seconds"] for one in own), strict=True)
        local = statistics.fmean(own[0]["local_seconds"])
        layout = lay_out(METHODS[method], parameters)
        if way == "flat":
            wire = _seconds(METHODS[method], layout, NODES.world_size, links["all"])
        else:
            between = _seconds(METHODS[method], layout, len(NODES.sizes), links["leaders"])
            wire = between + _seconds_inside_a_node(layout, links["inside"])
        cells.append(
            {
                "method": method,
                "way": way,
                "seconds": statistics.fmean(max(times) for times in rounds),
                "local_seconds": local,
                "predicted_seconds": local + wire,
            }
        )
    return cells


def _seconds(config: ReducerConfig, layout: FlatLayout, ranks: int, link: Link) -> float:
    return mean_seconds(steps_of(config, layout, ranks), ranks, link)


def _seconds_inside_a_node(layout: FlatLayout, link: Link) -> float:
    size = 4 * layout.numel
    kinds = ("ring_all_reduce", "tree_broadcast")
    return seconds_of([Transfer(kind=kind, size=size) for kind in kinds], NODES.sizes[0], link)


if __name__ == "__main__":
    sys.exit(main())
