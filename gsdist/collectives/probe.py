"""Measure latency and bandwidth of a process group's links by a short sweep of all-reduces."""

import statistics
import time

import torch
import torch.distributed as dist

from gsdist.collectives.agreement import gather_json
from gsdist.collectives.all_reduce import all_reduce_sum
from gsdist.collectives.cost_model import Cost, Link, Transfer, cost_of
from gsdist.errors import ConfigError

__all__ = ["probe_link"]

_CPU = torch.device("cpu")
_SMALL, _SMALL_ROUNDS = 32, 20
_FIRST_LARGE, _LARGEST = 2**16, 2**24
"""Numbers in the buffers, the first and the last large one; each is four times the one before."""
_LONG_ENOUGH = 0.1
"""Seconds of an all-reduce long enough to tell its bandwidth from its latency and from chance."""
_LARGE_ROUNDS = 3


def probe_link(group: dist.ProcessGroup | None = None, *, device: torch.device = _CPU) -> Link:
    """Measure what a message of a device's tensors costs; all ranks must call it, and get the same answer.

    Latency is that of a small all-reduce per message. Bandwidth follows from the difference of two large
    ones, so that what both have in common does not count. Of all ranks' medians the slowest counts. Takes
    about a second, longer on links slower than 10 Mb/s.

    Raises:
        ConfigError: the group has one rank, so there is no link.
        CollectiveError: the backend failed or its deadline passed.

    Collectives: about 30 all-reduces of float32 and some all-gathers.
    """
    ranks = dist.get_world_size(group)
    if ranks == 1:
        raise ConfigError(
            "a job of one worker has no link to measure; start more workers, or say latency and bandwidth"
        )
    latency = _seconds(_SMALL, _SMALL_ROUNDS, group, device) / _cost(_SMALL, ranks).messages
    count = _FIRST_LARGE
    while _seconds(count, 1, group, device) < _LONG_ENOUGH and count < _LARGEST:
        count *= 4
    long, short = (_seconds(n, _LARGE_ROUNDS, group, device) for n in (count, count // 4))
    sent = _cost(count, ranks).bytes - _cost(count // 4, ranks).bytes
    # On a link so fast that chance decides which is longer, at least the long one's own rate was reached.
    elapsed = long - short if long > short else long
    return Link(latency=latency, bandwidth=sent / elapsed)


def _cost(count: int, ranks: int) -> Cost:
    return cost_of((Transfer(kind="ring_all_reduce", size=4 * count),), ranks)


def _seconds(
    count: int, rounds: int, group: dist.ProcessGroup | None, device: torch.device
) -> float:
    """Return the slowest rank's median time of an all-reduce, the first not counted."""
    buffer, seconds = torch.zeros(count, device=device), []
    for _ in range(1 + rounds):
        start = time.perf_counter()
        all_reduce_sum(buffer, group, phase="the link probe")
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return float(max(gather_json(statistics.median(seconds[1:]), group)))
