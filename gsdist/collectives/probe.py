"""Measure what the links of a process group do: latency, bandwidth and the overhead of small collectives.

Latency times messages is a poor guess of what a small collective takes: backends poll and sleep, processes
share processors, switches let bursts pass. So every kind of collective is timed at a few sizes.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.distributed as dist
from torch import Tensor

from gsdist.collectives.agreement import gather_json
from gsdist.collectives.all_gather import all_gather_equal
from gsdist.collectives.all_reduce import all_reduce_sum
from gsdist.collectives.cost_model import COST_FUNCTIONS, Link
from gsdist.collectives.point_to_point import all_to_all, broadcast_from, gather_to
from gsdist.collectives.ranks import wait_for_device
from gsdist.collectives.tree import tree_all_reduce_sum
from gsdist.errors import ConfigError

__all__ = ["probe_link"]

Group = dist.ProcessGroup | None
_CPU = torch.device("cpu")
_PHASE = "the link probe"
_SMALL = (2**5, 2**12, 2**13, 2**15)
"""Numbers in the buffers of which every kind of collective is timed."""
_LARGE = (2**17, 2**19, 2**21, 2**23)
"""Those of which all-reduces alone are timed, until one is long enough."""
_LONG_ENOUGH = 0.1
"""Seconds of an all-reduce long enough to tell its bandwidth from its latency and from chance."""
_ROUNDS, _LEAST_ROUNDS = 40, 3
_SECONDS = 0.2
"""To spend on one size of one kind, beyond the least number of rounds."""


def probe_link(group: Group = None, *, device: torch.device = _CPU) -> Link:
    """Measure what collectives of a device's tensors cost; all ranks must call it, and get the same answer.

    Bandwidth follows from the difference of two large all-reduces, so that what both have in common does not
    count. Of each round the slowest rank counts, from a common start; of all rounds the mean of the middle
    half, as times of small collectives come in two or more heaps. Takes about 5 seconds, longer on links
    slower than 10 Mb/s.

    Raises:
        ConfigError: the group has one rank, so there is no link.
        CollectiveError: the backend failed or its deadline passed.

    Collectives: up to 40 rounds of every kind and size, each after a small all-reduce; some all-gathers.
    """
    ranks = dist.get_world_size(group)
    if ranks == 1:
        raise ConfigError(
            "a job of one worker has no link to measure; start more workers, or say latency and bandwidth"
        )
    seconds = {
        kind: {4 * n: _seconds(run, n, group, device) for n in _SMALL}
        for kind, run in _KINDS.items()
    }
    ring = seconds["ring_all_reduce"]
    for count in _LARGE:
        ring[4 * count] = _seconds(_KINDS["ring_all_reduce"], count, group, device)
        if ring[4 * count] >= _LONG_ENOUGH:
            break
    shorter, longer = list(ring)[-2:]
    if ring[longer] > ring[shorter]:
        elapsed, sent = ring[longer] - ring[shorter], longer - shorter
    else:  # on a link this fast chance decides which is longer
        elapsed, sent = ring[longer], longer
    bandwidth = _bytes("ring_all_reduce", sent, ranks) / elapsed
    overhead = {
        kind: [
            (size, taken - _bytes(kind, size, ranks) / bandwidth) for size, taken in by_size.items()
        ]
        for kind, by_size in seconds.items()
    }
    # what goes up the tree of an all-reduce is half of it
    overhead["tree_reduce"] = [(size, half / 2) for size, half in overhead["tree_all_reduce"]]
    messages = COST_FUNCTIONS["ring_all_reduce"](0, ranks).messages
    return Link(latency=ring[4 * _SMALL[0]] / messages, bandwidth=bandwidth, overhead=overhead)


def _bytes(kind: str, size: float, ranks: int) -> float:
    return COST_FUNCTIONS[kind](size, ranks).bytes


def _seconds(
    run: Callable[[Tensor, Group], object], count: int, group: Group, device: torch.device
) -> float:
    """Return the typical time of a collective on so many numbers; the first round does not count."""
    buffer = torch.zeros(count, device=device)
    once = _round(run, buffer, group)
    rounds = min(_ROUNDS, max(_LEAST_ROUNDS, int(_SECONDS / max(gather_json(once, group)))))
    own = [_round(run, buffer, group) for _ in range(rounds)]
    slowest = sorted(map(max, zip(*gather_json(own, group), strict=True)))
    quarter = rounds // 4
    return statistics.fmean(slowest[quarter : rounds - quarter])


def _round(run: Callable[[Tensor, Group], object], buffer: Tensor, group: Group) -> float:
    all_reduce_sum(buffer.new_zeros(1), group, phase=_PHASE)
    wait_for_device(buffer.device)
    start = time.perf_counter()
    run(buffer, group)
    wait_for_device(buffer.device)
    return time.perf_counter() - start


def _all_to_all(buffer: Tensor, group: Group) -> None:
    ranks = dist.get_world_size(group)
    part = buffer[: max(1, len(buffer) // (ranks - 1))]
    all_to_all([part] * ranks, [len(part)] * ranks, group, phase=_PHASE)


_KINDS: Mapping[str, Callable[[Tensor, Group], object]] = MappingProxyType(
    {
        "ring_all_reduce": lambda buffer, group: all_reduce_sum(buffer, group, phase=_PHASE),
        "tree_all_reduce": lambda buffer, group: tree_all_reduce_sum(buffer, group, phase=_PHASE),
        "ring_all_gather": lambda buffer, group: all_gather_equal(buffer, group, phase=_PHASE),
        "all_to_all": _all_to_all,
        "gather": lambda buffer, group: gather_to(0, buffer, group, phase=_PHASE),
        "tree_broadcast": lambda buffer, group: broadcast_from(0, buffer, group, phase=_PHASE),
    }
)
"""The functions that reducers use, by the cost model's name."""
