"""Simulate steps message by message, where workers differ in speed or share links.

The cost model lets all workers start together and gives each a link of its own. Here every worker computes
for a random time (lognormal, with the given mean). A message leaves when its sender has what it passes on,
and waits for the sender's link, for the links that sender and receiver share with their neighbours, and for
the receiver's link; each is busy for as long as the bytes take. Alone, it takes what the cost model says.

Links serve in the order in which messages want them. The rounds of a collective are those of
`gsdist.collectives`: rings pass parts to the right, trees are binomial, all pairs go in P - 1 rounds.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from gsdist.collectives.cost_model import Transfer
from gsdist.errors import ConfigError
from gsdist.planner.candidates import Candidate
from gsdist.planner.prediction import HIDDEN_SHARE, Situation
from gsdist.planner.traffic import steps_of
from gsdist.reducers import FlatLayout

__all__ = ["Variation", "simulate_step"]

Times = NDArray[np.float64]
Ranks = NDArray[np.int64]
_DRAWS = 3
_SEED = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Variation:
    """Say what makes workers and links unequal."""

    spread: float = 0.0
    """Standard deviation of the logarithm of a worker's computing time; 0.2 is about 20 %."""
    workers_per_link: int = 1
    """Consecutive workers that share one link to all others, as fast as each of their own."""

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.spread < 0 or not math.isfinite(self.spread):
            raise ConfigError(f"spread is {self.spread}; it must be at least 0")
        if self.workers_per_link < 1:
            raise ConfigError(f"workers_per_link is {self.workers_per_link}; it must be at least 1")


def simulate_step(
    candidate: Candidate,
    layout: FlatLayout,
    local_seconds: float,
    situation: Situation,
    variation: Variation,
) -> float:
    """Return the mean seconds of a step, over draws of computing times and the method's kinds of steps.

    Raises:
        ConfigError: the method cannot serve this layout with its settings.
    """
    steps = steps_of(candidate.config, layout, situation.ranks)
    generator = np.random.default_rng(_SEED)
    total = 0.0
    for _ in range(_DRAWS):
        slowness = _slowness(generator, situation.ranks, variation.spread)
        computing = slowness * situation.compute_seconds
        begun = computing * (1 - HIDDEN_SHARE if candidate.is_dense else 1)
        for times, transfers in steps:
            network = _Network(situation, variation)
            ended = network.run(transfers, begun + slowness * local_seconds)
            total += times * float(np.maximum(ended, computing).max())
    return total / _DRAWS / sum(times for times, _ in steps)


def _slowness(generator: np.random.Generator, ranks: int, spread: float) -> Times:
    """Draw factors of mean 1."""
    drawn: Times = np.exp(spread * generator.standard_normal(ranks) - spread**2 / 2)
    return drawn


class _Network:
    """Know from when on every link is free."""

    def __init__(self, situation: Situation, variation: Variation) -> None:
        self.ranks = situation.ranks
        self._link = situation.link
        self._site = np.arange(self.ranks) // variation.workers_per_link
        self._shares = variation.workers_per_link > 1
        sites = int(self._site[-1]) + 1
        self._free = {
            "out": np.zeros(self.ranks),
            "shared out": np.zeros(sites),
            "shared in": np.zeros(sites),
            "in": np.zeros(self.ranks),
        }

    def run(self, transfers: tuple[Transfer, ...], ready: Times) -> Times:
        """Return when each worker is through the collectives that it enters at `ready`."""
        if self.ranks == 1:
            return ready
        for transfer in transfers:
            ready = _ALGORITHMS[transfer.kind](self, transfer.size, ready.copy())
        return ready

    def send(self, sources: Ranks, targets: Ranks, ready: Times, size: float) -> Times:
        """Return when messages of one size, which their senders have at `ready`, arrive."""
        service = size / self._link.bandwidth
        start = self._queue("out", sources, ready, service)
        if self._shares:
            far = self._site[sources] != self._site[targets]
            for name, ends in (("shared out", sources), ("shared in", targets)):
                start[far] = self._queue(name, self._site[ends[far]], start[far], service)
        start = self._queue("in", targets, start, service)
        return start + service + self._link.latency

    def _queue(self, name: str, places: Ranks, wanted: Times, service: float) -> Times:
        """Return when messages that want a link get it, first come, first served."""
        free = self._free[name]
        if np.bincount(places).max(initial=0) <= 1:
            start = np.maximum(wanted, free[places])
            free[places] = start + service
            return start
        order = np.lexsort((wanted, places))
        place, start = places[order], np.maximum(wanted, free[places])[order]
        first = np.flatnonzero(np.diff(place, prepend=-1))
        position = np.arange(len(place)) - np.repeat(first, np.diff(first, append=len(place)))
        # start_k = max over j <= k of (start_j + (k - j) service), link by link
        offset = place * (2 * (float(start.max(initial=0.0)) + len(place) * service) + 1)
        start = np.maximum.accumulate(start - position * service + offset)
        start += position * service - offset
        np.maximum.at(free, place, start + service)
        result = np.empty_like(start)
        result[order] = start
        return result


def _rounds_of_ring(network: _Network, part: float, rounds: int, ready: Times) -> Times:
    everyone = np.arange(network.ranks)
    right = (everyone + 1) % network.ranks
    for _ in range(rounds):
        arrived = network.send(everyone, right, ready, part)
        ready[right] = np.maximum(ready[right], arrived)
    return ready


def _ring_all_reduce(network: _Network, size: float, ready: Times) -> Times:
    return _rounds_of_ring(network, size / network.ranks, 2 * (network.ranks - 1), ready)


def _ring_all_gather(network: _Network, size: float, ready: Times) -> Times:
    return _rounds_of_ring(network, size, network.ranks - 1, ready)


def _all_to_all(network: _Network, size: float, ready: Times) -> Times:
    everyone = np.arange(network.ranks)
    for distance in range(1, network.ranks):
        targets = (everyone + distance) % network.ranks
        arrived = network.send(everyone, targets, ready, size / (network.ranks - 1))
        ready[targets] = np.maximum(ready[targets], arrived)
    return ready


def _gather(network: _Network, size: float, ready: Times) -> Times:
    senders = np.arange(1, network.ranks)
    arrived = network.send(senders, np.zeros_like(senders), ready[1:], size)
    ready[0] = max(ready[0], arrived.max())
    return ready


def _tree_reduce(network: _Network, size: float, ready: Times) -> Times:
    distance = 1
    while distance < network.ranks:
        senders = np.arange(distance, network.ranks, 2 * distance)
        arrived = network.send(senders, senders - distance, ready[senders], size)
        ready[senders - distance] = np.maximum(ready[senders - distance], arrived)
        distance *= 2
    return ready


def _tree_broadcast(network: _Network, size: float, ready: Times) -> Times:
    distance = 2 ** (math.ceil(math.log2(network.ranks)) - 1)
    while distance:
        receivers = np.arange(distance, network.ranks, 2 * distance)
        arrived = network.send(receivers - distance, receivers, ready[receivers - distance], size)
        ready[receivers] = np.maximum(ready[receivers], arrived)
        distance //= 2
    return ready


def _tree_all_reduce(network: _Network, size: float, ready: Times) -> Times:
    return _tree_broadcast(network, size, _tree_reduce(network, size, ready))


_ALGORITHMS: Mapping[str, Callable[[_Network, float, Times], Times]] = MappingProxyType(
    {
        "ring_all_reduce": _ring_all_reduce,
        "ring_all_gather": _ring_all_gather,
        "all_to_all": _all_to_all,
        "gather": _gather,
        "tree_reduce": _tree_reduce,
        "tree_broadcast": _tree_broadcast,
        "tree_all_reduce": _tree_all_reduce,
    }
)
"""How workers pass messages in a collective of the cost model: when each is ready before, and after."""
